"""Kernel: structured loops over typed buffers, scalars and vectors.

This is all that a printer sees. Holes are filled, inline calls expanded, compile-time branches
pruned, `unroll` and `registers` turned into plain variables, and every expression has a type.

    kernel = buffers scratch scalars  for TASKS in parallel(EXTENTS): body
    stmt   = Assign | Store | Prefetch | DotTile | For | If
    expr   = Const | Var | Load | Op

Expressions are pure; a statement's expressions are evaluated before its effect. A variable keeps
one type and is visible in the block of its first assignment and in the blocks inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ondevice.dtypes import DType, boolean, index

Number = int | float | bool


@dataclass(frozen=True)
class Type:
    """A scalar (`lanes == 1`) or a vector of a power of two lanes, the same on every target."""

    dtype: DType
    lanes: int = 1

    def __str__(self) -> str:
        return self.dtype.name if self.lanes == 1 else f"{self.dtype.name}x{self.lanes}"

    @property
    def bits(self) -> int:
        return self.dtype.bits * self.lanes


INDEX = Type(index)
BOOL = Type(boolean)


@dataclass(frozen=True)
class Const:
    """A constant; in a vector type every lane has the value. Floats are rounded to the dtype."""

    type: Type
    value: Number

    def __eq__(self, other: object) -> bool:
        # repr tells 0.0 from -0.0 and makes nan equal to itself, as kernels need it
        return (
            isinstance(other, Const)
            and self.type == other.type
            and repr(self.value) == repr(other.value)
        )

    def __hash__(self) -> int:
        return hash((self.type, repr(self.value)))


@dataclass(frozen=True)
class Var:
    """A local variable, a loop or task variable, or a scalar parameter of the kernel."""

    type: Type
    name: str


@dataclass(frozen=True)
class Load:
    """`type.lanes` neighbours along the last dimension of `buffer`, from `indices` on.

    With `count`, lanes >= count read nothing and are 0. Where `type.dtype` differs from the
    buffer's, its little-endian bytes are reinterpreted; `indices` still count buffer elements.
    """

    type: Type
    buffer: str
    indices: tuple[Expr, ...]
    count: Expr | None = None


@dataclass(frozen=True)
class Op:
    """An operator or intrinsic applied to `args`; its meaning is the body in INTRINSICS."""

    type: Type
    name: str
    args: tuple[Expr, ...]


Expr = Const | Var | Load | Op


@dataclass(frozen=True)
class Assign:
    name: str
    value: Expr


@dataclass(frozen=True)
class Store:
    """The inverse of Load: lanes >= count are not written."""

    buffer: str
    indices: tuple[Expr, ...]
    value: Expr
    count: Expr | None = None


@dataclass(frozen=True)
class Prefetch:
    """A hint that the cache line of an element is wanted soon; it changes no value."""

    buffer: str
    indices: tuple[Expr, ...]


@dataclass(frozen=True)
class DotTile:
    """`out = rows . columns` by a CPU's matrix unit, exact in int32.

    `out_at` is a place in scratch i32[..., 16, 16]. `rows` points to 16 rows of 64 int8, one after
    the other, and `columns` to 16 columns of 64 int8, four k of a column side by side: [16, 16, 4].
    Both are u8 buffers, and the bytes may run over their last dims.
    """

    out: str
    out_at: tuple[Expr, ...]
    rows: str
    rows_at: tuple[Expr, ...]
    columns: str
    columns_at: tuple[Expr, ...]


@dataclass(frozen=True)
class For:
    """`for name in range(start, stop, step)`; the bounds are evaluated once; step > 0."""

    name: str
    start: Expr
    stop: Expr
    step: int
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class If:
    condition: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


Stmt = Assign | Store | Prefetch | DotTile | For | If


@dataclass(frozen=True)
class Buffer:
    """A row-major array; a dimension is a number or the name of one of the kernel's scalars."""

    name: str
    dtype: DType
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Kernel:
    """A specialized kernel.

    `scalars` are passed as int32 in this order: the run-time dimensions by first appearance, then
    the index parameters. `scratch` buffers have static dims and are private to a worker. Task t of
    `prod(extents)` binds `tasks` row-major.
    """

    name: str
    buffers: tuple[Buffer, ...]
    scratch: tuple[Buffer, ...]
    scalars: tuple[str, ...]
    tasks: tuple[str, ...]
    extents: tuple[Expr, ...]
    body: tuple[Stmt, ...]

    @cached_property
    def scratch_offsets(self) -> dict[str, int]:
        """Byte offset of each scratch buffer, all 64-aligned."""
        offsets, end = {}, 0
        for buffer in self.scratch:
            offsets[buffer.name] = end
            end += -(-static_bytes(buffer) // 64) * 64
        return offsets

    @property
    def scratch_bytes(self) -> int:
        """Bytes that a worker must provide, a multiple of 64."""
        return sum(-(-static_bytes(buffer) // 64) * 64 for buffer in self.scratch)


def static_bytes(buffer: Buffer) -> int:
    """Size of a buffer whose dims are all numbers."""
    return math.prod(int(d) for d in buffer.dims) * buffer.dtype.bytes


def walk_statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement of `body`, outer before inner."""
    for statement in body:
        yield statement
        if isinstance(statement, For):
            yield from walk_statements(statement.body)
        elif isinstance(statement, If):
            yield from walk_statements(statement.then)
            yield from walk_statements(statement.orelse)


def can_trap(expr: Expr) -> bool:
    """True where evaluating `expr` needlessly could fault: it loads, or divides by a variable."""
    if isinstance(expr, Load):
        return True
    if isinstance(expr, Op):
        if expr.name in ("floordiv", "mod") and not isinstance(expr.args[1], Const):
            return True
        return any(can_trap(arg) for arg in expr.args)
    return False
