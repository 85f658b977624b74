"""Walking a launch table as the executor does, with a record of who touches which memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ondevice.bundle.program import Argument, Launch, Program, Space
from ondevice.lang import kernel_ir as ir
from ondevice.passes.context import VariantKernels

Place = tuple[object, ...]  # a slot of the arena, a step buffer, a layer of the KV cache


@dataclass(frozen=True)
class Access:
    """What one launch reads and writes, weights left out; found in the body of its kernel."""

    launch: Launch
    reads: frozenset[Place]
    writes: frozenset[Place]

    def conflicts(self, other: Access) -> bool:
        """Whether the order of the two matters."""
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)

    @property
    def own(self) -> frozenset[Place]:
        """What it writes to each worker's own memory."""
        return frozenset(p for p in self.writes if p[0] == Space.WORKER)


def access(kernels: VariantKernels, launch: Launch) -> Access:
    """Of the kernels of all CPU variants, which share their arguments."""
    kernel = kernels[0]
    loaded = set[str]().union(*map(buffers_read, kernels))
    stored = set[str]().union(*map(buffers_written, kernels))
    places = {
        buffer.name: place(kernel, launch, argument)
        for buffer, argument in zip(kernel.buffers, launch.arguments, strict=True)
        if argument.space != Space.WEIGHTS
    }
    reads = frozenset(p for name, p in places.items() if name in loaded)
    return Access(launch, reads, frozenset(p for name, p in places.items() if name in stored))


def place(kernel: ir.Kernel, launch: Launch, argument: Argument) -> Place:
    if argument.space == Space.KV:
        return (argument.space, launch.scalars[kernel.scalars.index("layer")].static)
    if argument.space == Space.WORKER:
        return (argument.space, argument.offset)
    return (argument.space, argument.index)


def buffers_written(kernel: ir.Kernel) -> set[str]:
    stores = {s.buffer for s in ir.walk_statements(kernel.body) if isinstance(s, ir.Store)}
    return stores | {s.out for s in ir.walk_statements(kernel.body) if isinstance(s, ir.DotTile)}


def buffers_read(kernel: ir.Kernel) -> set[str]:
    found: set[str] = set()
    for statement in ir.walk_statements(kernel.body):
        match statement:
            case ir.DotTile():
                found.update((statement.rows, statement.columns))
                expressions = (*statement.out_at, *statement.rows_at, *statement.columns_at)
            case ir.Store():
                expressions = (*statement.indices, statement.value, statement.count)
            case ir.Prefetch():
                expressions = statement.indices
            case ir.For():
                expressions = (statement.start, statement.stop)
            case ir.If():
                expressions = (statement.condition,)
            case _:
                expressions = (statement.value,)
        for expression in expressions:
            found.update(loads(expression))
    return found


def loads(expression: ir.Expr | None) -> Iterator[str]:
    if isinstance(expression, ir.Load):
        yield expression.buffer
        for part in (*expression.indices, expression.count):
            yield from loads(part)
    elif isinstance(expression, ir.Op):
        for part in expression.args:
            yield from loads(part)


def running(
    program: Program, kernels: tuple[VariantKernels, ...], sizes: dict[str, int]
) -> list[Access]:
    """The launches that run in a step of these sizes, in order."""
    return [
        access(kernels[launch.kernel], launch) for launch in program.launches if launch.runs(sizes)
    ]


def between_barriers(accesses: list[Access]) -> list[list[Access]]:
    """Launches that may run at the same time, in any order but that of their chains."""
    groups: list[list[Access]] = [[]]
    for one in accesses:
        if one.launch.barrier and groups[-1]:
            groups.append([])
        groups[-1].append(one)
    return groups


def chains(group: list[Access]) -> list[list[Access]]:
    """Launches that are claimed together."""
    found: list[list[Access]] = []
    for one in group:
        if not one.launch.chained:
            found.append([])
        found[-1].append(one)
    return found
