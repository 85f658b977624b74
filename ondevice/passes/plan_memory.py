"""Arena slots: values whose lifetimes do not overlap share memory. Sizes stay symbolic."""

from __future__ import annotations

from dataclasses import replace

from ondevice.bundle.program import Slot
from ondevice.dims import Extent
from ondevice.errors import GraphError
from ondevice.graph.graph import Graph, TensorType, Value
from ondevice.graph.ops import ACTIVATIONS, OPS
from ondevice.passes.context import Context
from ondevice.quant.scheme import activation_bytes


def plan_memory(graph: Graph, context: Context) -> Graph:
    """Gives each value the best free slot whose size grows with the same symbol, else a new one.

    A slot is free behind the first barrier after the last reader of its value: taken earlier it
    would force a barrier of its own between launches that have nothing else to do with each other.
    """
    last = _last_reads(graph)
    free: list[int] = []
    done: list[int] = []  # free from the next barrier on
    written: set[str] = set()  # since the last barrier
    sizes: list[Extent] = []
    storage: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        if written.intersection(node.reads()):
            free += done
            done.clear()
            written.clear()
        value = node.output
        written.add(value.name)
        if in_arena(graph, value):
            size = size_bytes(value.type)
            slot = _best(free, sizes, size)
            if slot is None:
                slot = len(sizes)
                sizes.append(size)
            else:
                free.remove(slot)
                sizes[slot] = larger(sizes[slot], size)
            storage[value.name] = slot
        read = dict.fromkeys(node.reads())
        done += [storage[n] for n in read if last.get(n) == position and n in storage]
    return replace(graph, storage=tuple(storage.items()))


def plan_separately(graph: Graph, context: Context) -> Graph:
    """The trivial form: a slot for every value."""
    values = [node.output for node in graph.nodes if in_arena(graph, node.output)]
    return replace(graph, storage=tuple((value.name, i) for i, value in enumerate(values)))


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


def in_arena(graph: Graph, value: Value) -> bool:
    """Results of pure ops live in the arena, except what leaves the step."""
    state = {node.output.name for node in graph.nodes if OPS[node.op].state}
    return value.name not in graph.outputs and value.name not in state


def size_bytes(type_: TensorType) -> Extent:
    """Bytes of an activation. GraphError where two of its dims are symbolic."""
    if type_.scheme == ACTIVATIONS:
        return activation_bytes(type_.shape[0], type_.shape[1].static or 0)
    size = Extent.of(type_.dtype.bytes)
    for dim in type_.shape:
        static = dim.static
        if static is not None:
            size = size * static
        elif size.static is not None:
            size = dim * size.static
        else:
            raise GraphError(f"{type_} has two symbolic dims; an arena value may have one")
    return size


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
