"""Tiles: how much of a node one task computes, constructed from the CPU's description.

The model is analytic (after Roller, OSDI 22): registers bound the accumulators, and a launch must
leave enough tasks for every core to claim several.
"""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Attrs, Choice, Graph, Node, TensorType
from ondevice.passes.context import Context

TASKS_PER_LAUNCH = 8  # below this many, halve the tile: a late worker then loses less


def tile(graph: Graph, context: Context) -> Graph:
    """Shrinks the default tile of small matrix products until there are tasks to share."""
    types = graph.types()
    return graph.with_nodes(
        tuple(
            replace(node, choices=tuple(_tiled(c, node, types) for c in node.choices))
            for node in graph.nodes
        )
    )


def tile_default(graph: Graph, context: Context) -> Graph:
    """The trivial form: every kernel keeps the tile of its row in the library."""
    return graph


def _tiled(choice: Choice, node: Node, types: dict[str, TensorType]) -> Choice:
    schedule = dict(choice.schedule)
    blocks = schedule.get("blocks")
    if not isinstance(blocks, int):
        return choice
    features = node.output.type.shape[-1].static or 0
    while blocks > 1 and -(-features // (16 * blocks)) < TASKS_PER_LAUNCH:
        blocks //= 2
    attrs: Attrs = tuple({**schedule, "blocks": blocks}.items())
    return replace(choice, schedule=attrs)
