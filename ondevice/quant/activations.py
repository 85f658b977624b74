"""Where activations become int8: in front of every matmul whose weights are integers."""

from __future__ import annotations

from dataclasses import replace

from ondevice.dims import Extent
from ondevice.dtypes import f32
from ondevice.graph.graph import Graph, Node, TensorType, Value
from ondevice.graph.ops import ACTIVATIONS
from ondevice.quant.scheme import is_integer


def quantize_activations(graph: Graph) -> Graph:
    """Inserts one `quantize` for each value that integer matmuls read, shared by all of them."""
    types = graph.types()
    quantized: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "matmul" and is_integer(types[node.inputs[1]].scheme):
            x, weight = node.inputs
            if x not in quantized:
                quantized[x] = f"{x}.int8"
                nodes.append(_quantize(x, quantized[x], types[x].shape, node.source))
            node = replace(node, inputs=(quantized[x], weight))
        nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _quantize(x: str, name: str, shape: tuple[Extent, ...], source: str) -> Node:
    output = Value(name, TensorType(f32, shape, ACTIVATIONS))
    return Node("quantize", (x,), output, source=source)
