"""Tiles: how much of a node one task computes, constructed from the CPU's description.

The model is analytic (after Roller, OSDI 22): a launch must leave enough tasks for every core to
claim several, a task's activations stay in the second cache, and registers bound the results that
are computed at once. The first two are one number for all CPU variants, which share a launch table;
the last is each variant's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ondevice.dims import Extent
from ondevice.graph.graph import Attrs, Choice, Graph, Node, Special
from ondevice.lang.library import KernelDef
from ondevice.passes.context import Context
from ondevice.quant.scheme import activation_bytes
from ondevice.targets.target import Cpu, CpuVariant

TASKS_PER_CORE = 2  # below this many, halve the task: a late worker then loses less
ROW_BLOCK = 16  # rows of weights that are stored together
VECTOR_BITS = 16 * 32  # of a vector of the kernel language that holds f32 or i32


def tile(graph: Graph, context: Context) -> Graph:
    """Shrinks the tasks and tiles of matrix products to the cores and registers there are."""
    types, kernels, cpu = graph.types(), context.library.kernels, context.target.cpu

    def tiled(choice: Choice, node: Node) -> Choice:
        row = kernels[choice.kernel]
        if row.fit is not None:
            best = room(cpu.variants[0])
            fits = [
                row.fit(node, types, room(variant), best, frozenset(variant.features))
                for variant in cpu.variants
            ]
            return _special(choice, [(choice.kernel, fit) for fit in fits], cpu)
        features = types[node.output.name].shape[-1].static or 0
        columns = types[node.inputs[0]].shape[-1].static or 0
        return _tiled(_cached(choice, columns, cpu), kernels, cpu, features)

    return graph.with_nodes(
        tuple(
            replace(node, choices=tuple(tiled(choice, node) for choice in node.choices))
            for node in graph.nodes
        )
    )


def tile_default(graph: Graph, context: Context) -> Graph:
    """The trivial form: every kernel keeps the tile of its row in the library."""
    return graph


def room(variant: CpuVariant) -> int:
    """Vectors of 16 lanes that fit the registers."""
    return variant.vector_registers * variant.vector_bits // VECTOR_BITS


def _tiled(choice: Choice, kernels: Mapping[str, KernelDef], cpu: Cpu, features: int) -> Choice:
    """The choice with its tiles; CPU variants that need another than the last are specials."""
    if not {"blocks", "strip"} & set(dict(choice.schedule)):
        return choice
    cells = _cells(choice.schedule, features, cpu.speed.cores)
    # Without strips the tile in registers is also the task: one for all, for the best registers.
    rooms = [room(v if "strip" in dict(choice.schedule) else cpu.variants[0]) for v in cpu.variants]
    own = []
    for variant, vectors in zip(cpu.variants, rooms, strict=True):
        kernel, schedule = choice.on(variant.name)
        schedule = _fitted(kernels[kernel], schedule, cells, vectors)
        own.append((kernel, _fetching(schedule, variant)))
    return _special(choice, own, cpu)


def _cached(choice: Choice, columns: int, cpu: Cpu) -> Choice:
    """The choice with as many tiles of activations a task as the second cache holds."""
    tile_bytes = activation_bytes(Extent.of(1), columns).static or 0

    def fitted(schedule: Attrs) -> Attrs:
        sizes = dict(schedule)
        while "tiles" in sizes and int(sizes["tiles"]) * tile_bytes > cpu.l2_bytes:
            sizes["tiles"] = int(sizes["tiles"]) // 2
        return tuple(sizes.items())

    specials = tuple(replace(s, schedule=fitted(s.schedule)) for s in choice.specials)
    return replace(choice, schedule=fitted(choice.schedule), specials=specials)


def _special(choice: Choice, own: Sequence[tuple[str, Attrs]], cpu: Cpu) -> Choice:
    """The choice with each variant's own kernel and tile; specials differ from the last's."""
    kernel, schedule = own[-1]
    specials = tuple(
        Special(variant.name, *its)
        for variant, its in zip(cpu.variants, own, strict=True)
        if its != own[-1]
    )
    return replace(choice, kernel=kernel, schedule=schedule, specials=specials)


def _cells(schedule: Attrs, features: int, cores: int) -> int:
    """Blocks of weights in a task."""
    sizes = dict(schedule)
    cells = int(sizes.get("strip", 1)) * int(sizes.get("blocks", 1))
    while cells > 1 and -(-features // (ROW_BLOCK * cells)) < TASKS_PER_CORE * cores:
        cells //= 2
    return cells


def _fitted(row: KernelDef, schedule: Attrs, cells: int, vectors: int) -> Attrs:
    """`schedule` for tasks of so many blocks and a CPU that holds so many vectors."""
    sizes = {n: int(v) for n, v in schedule if n in ("strip", "tokens", "blocks")}
    if "tokens" in sizes:
        sizes["blocks"] = min(sizes.get("blocks", 1), cells)
        while (
            row.held(sizes["tokens"], sizes["blocks"]) > vectors
            and max(sizes["tokens"], sizes["blocks"]) > 1
        ):
            larger = "blocks" if sizes["blocks"] > 1 else "tokens"
            sizes[larger] //= 2
    if "strip" in sizes:
        sizes["strip"] = cells // sizes.get("blocks", 1)
    return tuple((name, sizes.get(name, value)) for name, value in schedule)


def _fetching(schedule: Attrs, variant: CpuVariant) -> Attrs:
    """With vectors of 16 bytes a line takes so many instructions that no more are worth it."""
    if variant.vector_bits > 128:
        return schedule
    return tuple((name, 0 if name == "ahead" else value) for name, value in schedule)
