"""Whether two launches depend on each other only task by task.

Then who runs some tasks of the first may run the same tasks of the second at once. It is read off
the kernels themselves: off the elements that a task of each touches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ondevice.graph.graph import Node
from ondevice.lang.footprint import Interval, Linear, Region
from ondevice.lang.library import Instance
from ondevice.passes.instances import Instances
from ondevice.passes.tasks import Task

Memory = Callable[[str, Node], Hashable]  # where a value lies; None: in memory that never changes


class Alignment:
    """Compares tasks of one graph; layers are alike, so each pair of kernels is compared once."""

    def __init__(self, instances: Instances, memory: Memory) -> None:
        self.instances = instances
        self.memory = memory
        self._known: dict[object, bool] = {}

    def alike(self, a: Task, b: Task) -> bool:
        """Whether task number i is the same place of both loops. The outermost may be longer."""
        left, right = ([extent for _, extent in task.numbers] for task in (a, b))
        return len(left) == len(right) and left[1:] == right[1:]

    def by_task(self, a: Task, b: Task) -> bool:
        """Whether tasks of different numbers never touch the same element that one writes."""
        return all(
            self._compared(a, b, one, other)
            for one, other in zip(a.instances, b.instances, strict=True)
        )

    def _compared(self, a: Task, b: Task, one: Instance, other: Instance) -> bool:
        """`_apart`, once for all that differ only in how scalars and places are called."""
        values = (*self._names(a, one).values(), *self._names(b, other).values())
        places = [self.memory(v, t.node) for t, i in ((a, one), (b, other)) for v in i.buffers]
        key = id(one.kernel), id(other.kernel), _pattern(values), _pattern(places)
        if key not in self._known:
            self._known[key] = self._apart(a, b, one, other)
        return self._known[key]

    def _apart(self, a: Task, b: Task, one: Instance, other: Instance) -> bool:
        """As `by_task`, for the kernels of one CPU variant."""
        names, others = self._names(a, one), self._names(b, other)
        count = len(a.numbers)
        for x, y in product(self._buffers(a, one), self._buffers(b, other)):
            if x.place != y.place:
                continue
            pairs = (*product(x.writes, y.reads | y.writes), *product(x.reads, y.writes))
            if pairs and _shape(x.dims, names) != _shape(y.dims, others):
                return False
            for region, area in pairs:
                mine, theirs = _renamed(region, names), _renamed(area, others)
                if not all(_separated(n, mine, theirs) for n in range(count)):
                    return False
        return True

    def _names(self, task: Task, instance: Instance) -> dict[str, str]:
        """Names that all kernels share: numbers of task variables, values of scalars, "" for 0."""
        kernel = instance.kernel
        names = dict.fromkeys(kernel.tasks, "")
        names |= {name: f"#{i}" for i, (name, _) in enumerate(task.numbers)}
        return names | {
            name: str(value) for name, value in zip(kernel.scalars, instance.scalars, strict=True)
        }

    def _buffers(self, task: Task, instance: Instance) -> Iterator[Touched]:
        kernel = instance.kernel
        found = self.instances.footprint(kernel)
        for buffer, value in zip(kernel.buffers, instance.buffers, strict=True):
            place = self.memory(value, task.node)
            if place is not None:
                reads = found.reads.get(buffer.name, frozenset())
                writes = found.writes.get(buffer.name, frozenset())
                yield Touched(place, buffer.dims, reads, writes)


@dataclass(frozen=True)
class Touched:
    """A buffer of a kernel, and what a task reads and writes of it."""

    place: Hashable
    dims: tuple[int | str, ...]
    reads: frozenset[Region]
    writes: frozenset[Region]


def _pattern(values: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """Which of the values are equal; numbers of tasks, and what never changes, as they are."""
    first: dict[Hashable, Hashable] = {}
    for value in values:
        fixed = value is None or (isinstance(value, str) and value[:1] in ("", "#"))
        first.setdefault(value, value if fixed else len(first))
    return tuple(first[value] for value in values)


def _shape(dims: tuple[int | str, ...], names: Mapping[str, str]) -> list[str]:
    return [str(dim) if isinstance(dim, int) else names[dim] for dim in dims]


def _renamed(region: Region, names: Mapping[str, str]) -> Region:
    def end(value: Linear | None) -> Linear | None:
        if value is None:
            return None
        total = Linear((), value.const)
        for name, coefficient in value.terms:
            if names[name]:
                total += Linear(((names[name], coefficient),), 0)
        return total

    return tuple(Interval(end(i.low), end(i.high)) for i in region)


def _separated(number: int, a: Region, b: Region) -> bool:
    """Whether tasks that differ in this task variable touch different elements of some dim."""
    return any(_steps_over(f"#{number}", x, y) for x, y in zip(a, b, strict=True))


def _steps_over(name: str, a: Interval, b: Interval) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    if not a.low.terms == a.high.terms == b.low.terms == b.high.terms:
        return False
    steps = [(n, c) for n, c in a.low.terms if n.startswith("#")]
    if [n for n, _ in steps] != [name]:
        return False
    step = steps[0][1]
    apart = b.high.const - a.low.const < step and a.high.const - b.low.const < step
    return step > 0 and apart
