"""Attention of few tokens to many cached positions is divided into spans, to occupy every core."""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Graph, Node, Value
from ondevice.graph.verify import infer_node
from ondevice.passes.context import Context


def split(graph: Graph, context: Context) -> Graph:
    """Puts the parts of each attention before it (flash-decoding, arXiv 2311.01282).

    Only kernels for few rows and several spans compute and join them; `select` says when.
    """
    types = graph.types()
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "attention":
            parts = replace(node, op="attention_parts", epilogue=())
            name = f"{node.output.name}.parts"
            parts = replace(parts, output=Value(name, infer_node(parts, types)))
            nodes.append(parts)
            node = replace(node, op="attention_joined", inputs=(*node.inputs, name))
        nodes.append(node)
    return graph.with_nodes(tuple(nodes))
