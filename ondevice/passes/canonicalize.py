"""One spelling for norms: a reduction and an elementwise part."""

from __future__ import annotations

from dataclasses import replace

from ondevice.dims import Extent
from ondevice.dtypes import f32
from ondevice.graph.graph import Graph, Node, TensorType, Value
from ondevice.passes.context import Context


def canonicalize(graph: Graph, context: Context) -> Graph:
    """Splits each rmsnorm into rms_scale and normalize, so that fuse sees the elementwise part."""
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.extend(_split_norm(node, graph) if node.op == "rmsnorm" else (node,))
    return graph.with_nodes(tuple(nodes))


def _split_norm(node: Node, graph: Graph) -> tuple[Node, Node]:
    x, weight = node.inputs
    rows: Extent = graph.types()[x].shape[0]
    scale = Value(f"{node.output.name}.scale", TensorType.of(f32, rows))
    reduction = replace(node, op="rms_scale", inputs=(x,), output=scale)
    return reduction, replace(node, op="normalize", inputs=(x, scale.name, weight), attrs=())
