"""Every element that a task of a launch touches, found by walking its kernel with numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ondevice.bundle.program import Launch, Space, StepBuffer
from ondevice.lang import kernel_ir as ir
from ondevice.lang.evaluate import evaluate

from .models import Array
from .simulate import place

Byte = tuple[object, int]  # a place, and a byte in it


@dataclass
class Touched:
    """Bytes, weights left out."""

    reads: set[Byte] = field(default_factory=set)
    writes: set[Byte] = field(default_factory=set)

    def conflicts(self, other: Touched) -> bool:
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)


def tasks(
    kernel: ir.Kernel, launch: Launch, sizes: Mapping[str, int], given: Mapping[str, Array]
) -> Iterator[Touched]:
    """What each task of a launch touches; `given` are the step's integers."""
    scalars = {n: e.evaluate(sizes) for n, e in zip(kernel.scalars, launch.scalars, strict=True)}
    extents = [evaluate(extent, scalars) for extent in kernel.extents]
    for numbers in np.ndindex(*extents):
        walk = _Walk(kernel, launch, scalars, given)
        walk.known |= dict(zip(kernel.tasks, map(int, numbers), strict=True))
        walk.run(kernel.body)
        yield walk.touched


class _Walk:
    """Indices as numbers; None where they come from what the step computes."""

    def __init__(
        self, kernel: ir.Kernel, launch: Launch, scalars: dict[str, int], given: Mapping[str, Array]
    ) -> None:
        self.touched = Touched()
        self.known: dict[str, int | None] = dict(scalars)
        self.dims = {b.name: [scalars.get(str(d), d) for d in b.dims] for b in kernel.buffers}
        self.widths = {b.name: b.dtype.bytes for b in kernel.buffers}
        arguments = dict(zip(self.dims, launch.arguments, strict=True))
        self.places = {
            name: place(kernel, launch, argument)
            for name, argument in arguments.items()
            if argument.space != Space.WEIGHTS
        }
        self.given = {
            name: given[StepBuffer(argument.index).name.lower()]
            for name, argument in arguments.items()
            if argument.space == Space.STEP and argument.index <= StepBuffer.LOGIT_ROWS
        }

    def run(self, body: tuple[ir.Stmt, ...]) -> None:
        for statement in body:
            match statement:
                case ir.Assign(name, value):
                    self.known[name] = self.value(value)
                case ir.Store():
                    self.value(statement.value)
                    size = statement.value.type.bits // 8
                    self.touch(self.touched.writes, statement, size)
                case ir.Prefetch():
                    for expression in statement.indices:
                        self.value(expression)
                case ir.DotTile():
                    for expression in (*statement.rows_at, *statement.columns_at):
                        self.value(expression)
                    for name in (statement.rows, statement.columns):
                        if name in self.places:
                            self.whole(self.touched.reads, name)
                case ir.For():
                    start, stop = self.value(statement.start), self.value(statement.stop)
                    assert start is not None and stop is not None
                    for number in range(start, stop, statement.step):
                        self.known[statement.name] = number
                        self.run(statement.body)
                case ir.If():
                    holds = self.value(statement.condition)
                    for taken, branch in ((True, statement.then), (False, statement.orelse)):
                        if holds is None or bool(holds) == taken:
                            self.run(branch)

    def value(self, expression: ir.Expr) -> int | None:
        match expression:
            case ir.Const(_, value):
                return int(value) if float(value).is_integer() else None
            case ir.Var(_, name):
                return self.known.get(name)
            case ir.Load():
                self.touch(self.touched.reads, expression, expression.type.bits // 8)
                if expression.buffer in self.given:
                    at = tuple(map(self.value, expression.indices))
                    return int(self.given[expression.buffer][at])
                return None
            case ir.Op(_, name, arguments):
                values = [self.value(argument) for argument in arguments]
                if name == "cast":
                    return values[0] if expression.type.lanes == 1 else None
                if None in values or expression.type.lanes > 1:
                    return None
                constants = [
                    ir.Const(a.type, v or 0) for a, v in zip(arguments, values, strict=True)
                ]
                try:
                    return evaluate(ir.Op(expression.type, name, tuple(constants)), {})
                except ValueError:
                    return None
        raise AssertionError(expression)

    def touch(self, into: set[Byte], access: ir.Load | ir.Store, size: int) -> None:
        """`size` bytes from an element on, fewer where the access has a count."""
        name = access.buffer
        at = [self.value(index) for index in access.indices]
        count = None if access.count is None else self.value(access.count)
        if name not in self.places:
            return
        if None in at:
            self.whole(into, name)
            return
        lanes = (access.value if isinstance(access, ir.Store) else access).type.lanes
        if access.count is not None and count is not None:
            size = size // lanes * min(max(count, 0), lanes)
        element = int(np.ravel_multi_index(at, self.dims[name])) if size else 0
        first = element * self.widths[name]
        into.update((self.places[name], byte) for byte in range(first, first + size))

    def whole(self, into: set[Byte], name: str) -> None:
        size = math.prod(map(int, self.dims[name])) * self.widths[name]
        into.update((self.places[name], byte) for byte in range(size))
