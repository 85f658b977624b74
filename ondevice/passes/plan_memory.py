"""Arena slots: values whose lifetimes do not overlap share memory. Sizes stay symbolic."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from ondevice.bundle.program import Slot
from ondevice.dims import Extent
from ondevice.graph.graph import Graph, Node
from ondevice.graph.ops import OPS
from ondevice.passes.alignment import Memory
from ondevice.passes.arena import arena_sizes, size_bytes
from ondevice.passes.context import Context
from ondevice.passes.instances import instances_of
from ondevice.passes.phases import always_apart, plan_phases


def plan_memory(graph: Graph, context: Context) -> Graph:
    """Gives each value the best free slot whose size grows with the same symbol, else a new one.

    A slot is free behind the first barrier after the last reader of its value that steps of every
    size have: taken earlier it would make launches wait that have nothing else to do with each
    other.
    """
    apart = always_apart(plan_phases(graph, instances_of(graph, context), by_value(graph)))
    last = _last_reads(graph)
    arena = arena_sizes(graph)
    free: list[int] = []
    done: list[int] = []  # free from the next barrier on
    sizes: list[Extent] = []
    storage: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        name = node.output.name
        if name in apart:
            free += done
            done.clear()
        if name in arena:
            slot = _best(free, sizes, arena[name])
            if slot is None:
                slot = len(sizes)
                sizes.append(arena[name])
            else:
                free.remove(slot)
                sizes[slot] = larger(sizes[slot], arena[name])
            storage[name] = slot
        read = dict.fromkeys(node.reads())
        done += [storage[n] for n in read if last.get(n) == position and n in storage]
    return replace(graph, storage=tuple(storage.items()))


def by_value(graph: Graph) -> Memory:
    """Every value in memory of its own, but for states, which are changed in place."""
    fixed = {weight.name for weight in graph.weights}
    states = {
        name
        for node in graph.nodes
        if (op := OPS[node.op]).state
        for name in (node.output.name, node.inputs[op.inputs.index(op.state)])
    }

    def memory(name: str, node: Node) -> Hashable:
        if name in states:
            return ("state", node.attr("layer"))
        return None if name in fixed else name

    return memory


def plan_separately(graph: Graph, context: Context) -> Graph:
    """The trivial form: a slot for every value."""
    return replace(graph, storage=tuple((name, i) for i, name in enumerate(arena_sizes(graph))))


def slots(graph: Graph) -> tuple[Slot, ...]:
    """The arena of a planned graph: each slot as large as its largest value."""
    types = graph.types()
    by_slot: dict[int, list[str]] = {}
    for name, slot in graph.storage:
        by_slot.setdefault(slot, []).append(name)
    planned = []
    for slot in range(len(by_slot)):
        size = size_bytes(types[by_slot[slot][0]])
        for name in by_slot[slot][1:]:
            size = larger(size, size_bytes(types[name]))
        planned.append(Slot(by_slot[slot][0], size))
    return tuple(planned)


def _last_reads(graph: Graph) -> dict[str, int]:
    return {name: i for i, node in enumerate(graph.nodes) for name in node.reads()}


def _symbols(size: Extent) -> tuple[str, ...]:
    return tuple(symbol for symbol, _ in size.terms)


def larger(a: Extent, b: Extent) -> Extent:
    """The least linear form that holds both, however large the step: `a` grows like `b`."""
    terms = dict(a.terms)
    for symbol, coefficient in b.terms:
        terms[symbol] = max(terms.get(symbol, 0), coefficient)
    return Extent(tuple(terms.items()), max(a.const, b.const))


def _best(free: list[int], sizes: list[Extent], size: Extent) -> int | None:
    """The free slot that fits most tightly; else the largest, which then grows."""
    alike = [slot for slot in free if _symbols(sizes[slot]) == _symbols(size)]
    if not alike:
        return None
    one = dict.fromkeys(_symbols(size), 1)
    wanted = size.evaluate(one)
    fitting = [slot for slot in alike if sizes[slot].evaluate(one) >= wanted]
    if fitting:
        return min(fitting, key=lambda slot: (sizes[slot].evaluate(one), slot))
    return max(alike, key=lambda slot: (sizes[slot].evaluate(one), -slot))
