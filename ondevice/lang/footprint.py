"""Which elements of its buffers a task of a kernel touches, as intervals of the task's numbers.

The analysis bounds every index by linear forms in the task variables and the kernel's scalars. What
it cannot bound it takes for the whole dimension, so a footprint may be too large, never too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ondevice.lang import kernel_ir as ir


@dataclass(frozen=True)
class Linear:
    """`sum(coefficient * name) + const`; terms are sorted, without zeros."""

    terms: tuple[tuple[str, int], ...]
    const: int

    def __add__(self, other: Linear) -> Linear:
        total = dict(self.terms)
        for name, coefficient in other.terms:
            total[name] = total.get(name, 0) + coefficient
        terms = tuple(sorted((n, c) for n, c in total.items() if c))
        return Linear(terms, self.const + other.const)

    def __mul__(self, factor: int) -> Linear:
        terms = tuple((n, c * factor) for n, c in self.terms) if factor else ()
        return Linear(terms, self.const * factor)

    def floordiv(self, divisor: int) -> Linear | None:
        """None where the quotient is no linear form."""
        if any(c % divisor for _, c in self.terms):
            return None
        return Linear(tuple((n, c // divisor) for n, c in self.terms), self.const // divisor)


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included; None is no bound."""

    low: Linear | None = None
    high: Linear | None = None


Region = tuple[Interval, ...]  # one interval for each dim
ANY = Interval()


@dataclass(frozen=True)
class Footprint:
    """What task `kernel.tasks` reads and writes of each buffer; scratch is left out."""

    reads: dict[str, frozenset[Region]]
    writes: dict[str, frozenset[Region]]


def footprint(kernel: ir.Kernel) -> Footprint:
    """The footprint of one task, in the names of the kernel's task variables and scalars."""
    walk = _Walk(kernel)
    walk.run(kernel.body)
    return Footprint(
        {name: frozenset(found) for name, found in walk.reads.items()},
        {name: frozenset(found) for name, found in walk.writes.items()},
    )


class _Walk:
    """Statements in order, with what is known of each index variable."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.dims = {b.name: len(b.dims) for b in kernel.buffers}
        self.widths = {b.name: b.dtype.bytes for b in kernel.buffers}
        self.reads: dict[str, set[Region]] = {}
        self.writes: dict[str, set[Region]] = {}
        self.known = {name: _exactly(name) for name in (*kernel.tasks, *kernel.scalars)}

    def run(self, body: tuple[ir.Stmt, ...]) -> None:
        for statement in body:
            for expression in _expressions(statement):
                self.read(expression)
            match statement:
                case ir.Assign(name, value):
                    self.known[name] = self.bound(value)
                case ir.Store():
                    lanes = statement.value.type
                    self.note(self.writes, statement.buffer, statement.indices, lanes.bits // 8)
                case ir.DotTile():  # over the ends of dims
                    for name in (statement.rows, statement.columns):
                        self.reads.setdefault(name, set()).add((ANY,) * self.dims.get(name, 0))
                case ir.For():
                    self.loop(statement)
                case ir.If():
                    self.branch(statement.then)
                    self.branch(statement.orelse)
                    self.forget((*statement.then, *statement.orelse))

    def loop(self, statement: ir.For) -> None:
        bounds = self.between(statement)
        self.forget(statement.body)  # what an earlier round assigned
        self.known[statement.name] = bounds
        self.branch(statement.body)
        self.forget(statement.body)

    def branch(self, body: tuple[ir.Stmt, ...]) -> None:
        before = dict(self.known)
        self.run(body)
        self.known = before

    def forget(self, body: tuple[ir.Stmt, ...]) -> None:
        for statement in ir.walk_statements(body):
            if isinstance(statement, ir.Assign) and statement.name in self.known:
                self.known[statement.name] = ANY

    def between(self, loop: ir.For) -> Interval:
        start, stop = self.bound(loop.start), self.bound(loop.stop)
        high = None if stop.high is None else stop.high + Linear((), -1)
        if start.low is not None and start.low == start.high and stop.high is not None:
            length = stop.high + start.low * -1
            if not length.terms:  # the last step may fall short of the end
                last = (length.const - 1) // loop.step * loop.step
                high = start.low + Linear((), last)
        return Interval(start.low, high)

    def read(self, expression: ir.Expr | None) -> None:
        if isinstance(expression, ir.Load):
            self.note(self.reads, expression.buffer, expression.indices, expression.type.bits // 8)
            for part in (*expression.indices, expression.count):
                self.read(part)
        elif isinstance(expression, ir.Op):
            for part in expression.args:
                self.read(part)

    def note(
        self, into: dict[str, set[Region]], buffer: str, indices: tuple[ir.Expr, ...], size: int
    ) -> None:
        """`size` bytes of a buffer from `indices` on."""
        if buffer not in self.dims:
            return
        region = [self.bound(index) for index in indices]
        elements = -(-size // self.widths[buffer])
        if region and region[-1].high is not None:
            region[-1] = Interval(region[-1].low, region[-1].high + Linear((), elements - 1))
        into.setdefault(buffer, set()).add(tuple(region))

    def bound(self, expression: ir.Expr) -> Interval:
        """The interval of an index expression."""
        if expression.type != ir.INDEX:
            return ANY
        match expression:
            case ir.Const(_, value):
                exact = Linear((), int(value))
                return Interval(exact, exact)
            case ir.Var(_, name):
                return self.known.get(name, ANY)
            case ir.Op(_, name, (a, b)):
                return _combine(name, self.bound(a), self.bound(b))
        return ANY


def _exactly(name: str) -> Interval:
    value = Linear(((name, 1),), 0)
    return Interval(value, value)


def _expressions(statement: ir.Stmt) -> Iterator[ir.Expr | None]:
    match statement:
        case ir.Assign():
            yield statement.value
        case ir.Store():
            yield from (*statement.indices, statement.value, statement.count)
        case ir.For():
            yield from (statement.start, statement.stop)
        case ir.If():
            yield statement.condition
        case ir.Prefetch():
            yield from statement.indices
        case ir.DotTile():
            yield from (*statement.out_at, *statement.rows_at, *statement.columns_at)


def _combine(name: str, a: Interval, b: Interval) -> Interval:
    if name == "add":
        return Interval(_sum(a.low, b.low), _sum(a.high, b.high))
    if name == "sub":
        return Interval(_sum(a.low, _negated(b.high)), _sum(a.high, _negated(b.low)))
    if name == "min":
        return Interval(
            _closer(a.low, b.low, min), _closer(a.high, b.high, min) or a.high or b.high
        )
    if name == "max":
        return Interval(_closer(a.low, b.low, max) or a.low or b.low, _closer(a.high, b.high, max))
    factor = _number(b)
    if name == "mul" and factor is None:
        a, factor = b, _number(a)
    if factor is None:
        return ANY
    if name == "mul":
        ends = (a.low, a.high) if factor >= 0 else (a.high, a.low)
        return Interval(*(None if end is None else end * factor for end in ends))
    if name == "floordiv" and factor > 0:
        return Interval(*(None if end is None else end.floordiv(factor) for end in (a.low, a.high)))
    if name == "mod" and factor > 0:
        return Interval(Linear((), 0), Linear((), factor - 1))
    return ANY


def _number(interval: Interval) -> int | None:
    low = interval.low
    return low.const if low is not None and low == interval.high and not low.terms else None


def _sum(a: Linear | None, b: Linear | None) -> Linear | None:
    return None if a is None or b is None else a + b


def _negated(value: Linear | None) -> Linear | None:
    return None if value is None else value * -1


def _closer(a: Linear | None, b: Linear | None, pick: Callable[[int, int], int]) -> Linear | None:
    """The lesser or greater of two bounds; None where nobody knows which it is."""
    if a is None or b is None or a.terms != b.terms:
        return None
    return Linear(a.terms, pick(a.const, b.const))
