"""Which device computes which node. CPU only until a target names another device."""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Graph
from ondevice.passes.context import Context


def partition(graph: Graph, context: Context) -> Graph:
    """Places every node on the CPU."""
    return graph.with_nodes(tuple(replace(node, device="cpu") for node in graph.nodes))
