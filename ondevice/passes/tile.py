"""Tiles: how much of a node one task computes, constructed from the CPU's description.

The model is analytic (after Roller, OSDI 22): registers bound the accumulators, and a launch must
leave enough tasks for every core to claim several.
"""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Attrs, Choice, Graph, Node
from ondevice.lang.library import KernelDef
from ondevice.passes.context import Context
from ondevice.targets.target import Cpu

TASKS_PER_LAUNCH = 8  # below this many, halve the tile: a late worker then loses less
REGISTERS = 32  # of AVX-512 and of arm64
VECTOR_BITS = 16 * 32  # of a vector of the kernel language that holds f32 or i32


def tile(graph: Graph, context: Context) -> Graph:
    """Halves the tile of matrix products until registers hold it and there are tasks to share."""
    types, room = graph.types(), registers(context.target.cpu)
    kernels = context.library.kernels

    def tiled(choice: Choice, node: Node) -> Choice:
        row = kernels[choice.kernel]
        if row.fit is not None:
            return replace(choice, schedule=row.fit(node, types, room))
        features = types[node.output.name].shape[-1].static or 0
        return _tiled(choice, row, features, room)

    return graph.with_nodes(
        tuple(
            replace(node, choices=tuple(tiled(choice, node) for choice in node.choices))
            for node in graph.nodes
        )
    )


def registers(cpu: Cpu) -> int:
    """Vectors of 16 lanes that fit the registers of the best variant, for which we tile."""
    return REGISTERS * cpu.variants[0].vector_bits // VECTOR_BITS


def tile_default(graph: Graph, context: Context) -> Graph:
    """The trivial form: every kernel keeps the tile of its row in the library."""
    return graph


def _tiled(choice: Choice, row: KernelDef, features: int, room: int) -> Choice:
    """The choice with its tile, if it has one; `room` is what `registers` says."""
    schedule = dict(choice.schedule)
    tokens, blocks = schedule.get("tokens"), schedule.get("blocks")
    if not (isinstance(tokens, int) and isinstance(blocks, int)):
        return choice
    while blocks > 1 and (
        -(-features // (16 * blocks)) < TASKS_PER_LAUNCH or row.held(tokens, blocks) > room
    ):
        blocks //= 2
    while tokens > 1 and row.held(tokens, blocks) > room:
        tokens //= 2
    attrs: Attrs = tuple({**schedule, "tokens": tokens, "blocks": blocks}.items())
    return replace(choice, schedule=attrs)
