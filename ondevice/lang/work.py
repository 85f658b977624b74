"""What a kernel executes: its straight pieces, with the operations of each, and how often they run.

Operations are counted as a compiler leaves them: equal ones once, and those that do not change in a
loop in front of it. Index arithmetic, which goes into addresses, is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ondevice.lang import kernel_ir as ir

# Cycles until a result can be used: about the same on all of today's cores (uops.info for x86,
# Arm's software optimization guides for Cortex-A76 to X2).
LATENCY = {"load": 5, "fma": 4, "dot4": 5, "dot4_u7": 5, "dot4_i8": 9, "cast": 4, "div": 12}
FLOAT_LATENCY = 4  # of float arithmetic that is not named above; integers take 1
ADDRESSED = {"add", "sub", "mul", "cast"}  # of indices: what goes into an address
MATRIX_BYTES = 16 * 64  # of each operand of dot_tile


class Operation(NamedTuple):
    """An operator, intrinsic, "load", "store", "prefetch", "dot_tile" or "round" (of a loop)."""

    name: str
    type: ir.Type  # of the result, or of what is stored
    source: ir.Type  # of the first operand


@dataclass(frozen=True)
class Access:
    """Elements of a buffer that one piece reads or writes: `extra` more of each dim than `at`.

    `at` is an index expression and the least and greatest constant that is added to it.
    """

    buffer: str
    at: tuple[tuple[tuple[ir.Expr, ...], int, int], ...]


@dataclass
class Piece:
    """Statements without loops and branches, and those inside, in order.

    `chain` is the latency from one round of the loop to the next, in cycles: what a round takes at
    least.
    """

    operations: Counter[Operation] = field(default_factory=Counter)
    prefetches: Counter[str] = field(default_factory=Counter)  # lines, by buffer
    chain: int = 0
    accesses: tuple[Access, ...] = ()
    inner: list[ir.Assign | Loop | Branch] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    statement: ir.For
    body: Piece


@dataclass(frozen=True)
class Branch:
    condition: ir.Expr
    then: Piece
    orelse: Piece


def pieces(kernel: ir.Kernel) -> Piece:
    """The body of a task. Of assignments it keeps those that control or addresses depend on."""
    body = _Counting(kernel).body(kernel.body)
    wanted = deciding(body, addresses=True)
    for piece in walk_pieces(body):
        piece.inner = [p for p in piece.inner if not isinstance(p, ir.Assign) or p.name in wanted]
    return body


def deciding(piece: Piece, addresses: bool = False) -> frozenset[str]:
    """Variables that bounds of loops and conditions depend on, and `addresses` if asked for."""
    found: set[str] = set()
    assigns: list[ir.Assign] = []
    for inside in walk_pieces(piece):
        if addresses:
            for access in inside.accesses:
                found.update(n for terms, *_ in access.at for term in terms for n in _names(term))
        for part in inside.inner:
            if isinstance(part, Loop):
                found.update(_names(part.statement.start), _names(part.statement.stop))
            elif isinstance(part, Branch):
                found.update(_names(part.condition))
            else:
                assigns.append(part)
    size = -1
    while size != len(found):
        size = len(found)
        for assign in assigns:
            if assign.name in found:
                found.update(_names(assign.value))
    return frozenset(found)


def _names(expr: ir.Expr) -> Iterator[str]:
    if isinstance(expr, ir.Var):
        yield expr.name
    elif isinstance(expr, (ir.Op, ir.Load)):
        for part in expr.args if isinstance(expr, ir.Op) else expr.indices:
            yield from _names(part)


def walk_pieces(piece: Piece) -> Iterator[Piece]:
    """The piece and those inside of it."""
    yield piece
    for part in piece.inner:
        if isinstance(part, Loop):
            yield from walk_pieces(part.body)
        elif isinstance(part, Branch):
            yield from walk_pieces(part.then)
            yield from walk_pieces(part.orelse)


@dataclass
class _Scope:
    piece: Piece
    branch: bool  # what is computed in one does not move out of it
    known: dict[object, int] = field(default_factory=dict)
    places: dict[tuple[str, tuple[tuple[ir.Expr, ...], ...]], list[list[int]]] = field(
        default_factory=dict
    )


class _Counting:
    """Numbers values, equal ones alike; a value lives in the outermost scope that can compute it.

    (Value numbering and loop-invariant code motion; Muchnick 1997, chapters 12 and 13.)
    """

    def __init__(self, kernel: ir.Kernel) -> None:
        self.variables: dict[str, int] = {}
        self.scope_of: list[int] = []  # of each value
        self.chain_of: list[int] = []  # of each value: cycles since the round began, -1 for none
        self.versions: Counter[str] = Counter()
        self.scopes: list[_Scope] = []
        for name in kernel.scalars:
            self.variables[name] = self.fresh(0)
        self.tasks = kernel.tasks
        self.buffers = {b.name: b for b in (*kernel.buffers, *kernel.scratch)}

    def fresh(self, scope: int, chain: int = -1) -> int:
        self.scope_of.append(scope)
        self.chain_of.append(chain)
        return len(self.scope_of) - 1

    def body(self, statements: tuple[ir.Stmt, ...]) -> Piece:
        with_tasks = _Scope(Piece(), False)
        self.scopes.append(with_tasks)
        for name in self.tasks:
            self.variables[name] = self.fresh(0)
        self.run(statements)
        return self.close()

    def close(self) -> Piece:
        scope = self.scopes.pop()
        scope.piece.accesses = tuple(
            Access(buffer, tuple((rest, a, b) for rest, (a, b) in zip(at, found, strict=True)))
            for (buffer, at), found in scope.places.items()
        )
        return scope.piece

    def run(self, statements: tuple[ir.Stmt, ...]) -> None:
        piece = self.scopes[-1].piece
        for statement in statements:
            match statement:
                case ir.Assign(name, value):
                    self.variables[name] = self.number(value)
                    if value.type == ir.INDEX or value.type.lanes == 1:
                        piece.inner.append(statement)
                case ir.Store(buffer, indices, value, count):
                    self.number(value)
                    self.address(buffer, indices, value.type.bits // 8)
                    if count is not None:
                        self.number(count)
                    self.versions[buffer] += 1
                    self.count(Operation("store", value.type, value.type))
                case ir.Prefetch(buffer, indices):
                    for index in indices:
                        self.number(index)
                    self.count(Operation("prefetch", ir.INDEX, ir.INDEX))
                    piece.prefetches[buffer] += 1
                case ir.DotTile():
                    self.product(statement)
                case ir.For():
                    self.loop(statement)
                case ir.If(condition, then, orelse):
                    self.number(condition)
                    self.branch(condition, then, orelse)

    def product(self, tile: ir.DotTile) -> None:
        for at in (*tile.out_at, *tile.rows_at, *tile.columns_at):
            self.number(at)
        for buffer, indices in (
            (tile.out, tile.out_at),
            (tile.rows, tile.rows_at),
            (tile.columns, tile.columns_at),
        ):
            self.address(buffer, indices, MATRIX_BYTES)
        self.versions[tile.out] += 1
        self.count(Operation("dot_tile", ir.INDEX, ir.INDEX))

    def loop(self, statement: ir.For) -> None:
        for end in (statement.start, statement.stop):
            self.number(end)
        changed = self.changed(statement.body)
        self.scopes.append(_Scope(Piece(), False))
        here = len(self.scopes) - 1
        self.variables[statement.name] = self.fresh(here)
        for name in changed:
            self.variables[name] = self.fresh(here, 0)
        self.run(statement.body)
        ends = [self.chain_of[self.variables[name]] for name in changed]
        self.count(Operation("round", ir.INDEX, ir.INDEX))
        body = self.close()
        body.chain = max(ends, default=0)
        self.scopes[-1].piece.inner.append(Loop(statement, body))
        for name in changed:
            self.variables[name] = self.fresh(here - 1, self.carried(name))
        self.changed(statement.body)

    def carried(self, name: str) -> int:
        """What a loop leaves in a variable still hangs on the round around it."""
        return 0 if len(self.scopes) > 1 and name in self.variables else -1

    def branch(
        self, condition: ir.Expr, then: tuple[ir.Stmt, ...], orelse: tuple[ir.Stmt, ...]
    ) -> None:
        before, sides, chains = dict(self.variables), [], Counter[str]()
        changed = self.changed((*then, *orelse))
        for statements in (then, orelse):
            self.variables = dict(before)
            self.scopes.append(_Scope(Piece(), True))
            self.run(statements)
            sides.append(self.close())
            for name in changed:
                chains[name] = max(chains[name], self.chain_of[self.variables[name]])
        self.variables = before
        for name in changed:
            self.variables[name] = self.fresh(len(self.scopes) - 1, chains[name])
        self.scopes[-1].piece.inner.append(Branch(condition, *sides))
        self.changed((*then, *orelse))

    def changed(self, body: tuple[ir.Stmt, ...]) -> list[str]:
        """Variables from outside that statements assign; what they store is not what it was."""
        names: dict[str, None] = {}
        for statement in ir.walk_statements(body):
            if isinstance(statement, ir.Assign) and statement.name in self.variables:
                names[statement.name] = None
            elif isinstance(statement, ir.Store):
                self.versions[statement.buffer] += 1
            elif isinstance(statement, ir.DotTile):
                self.versions[statement.out] += 1
        return list(names)

    def count(self, operation: Operation, scope: int = -1) -> None:
        self.scopes[scope].piece.operations[operation] += 1

    def number(self, expr: ir.Expr) -> int:
        key: tuple[object, ...]
        match expr:
            case ir.Var(_, name):
                if name not in self.variables:  # of a branch that was not taken before
                    self.variables[name] = self.fresh(len(self.scopes) - 1)
                return self.variables[name]
            case ir.Const(type, value):
                key = ("const", type, repr(value))
                found = self.find(key)
                return self.put(key, 0, -1) if found is None else found
            case ir.Load(type, buffer, indices, count):
                parts = [self.number(i) for i in indices]
                if count is not None:
                    parts.append(self.number(count))
                key = ("load", type, buffer, self.versions[buffer], *parts)
                found = self.find(key)
                if found is None:
                    self.address(buffer, indices, type.bits // 8)
                    self.count(Operation("load", type, type))
                    found = self.put(key, len(self.scopes) - 1, self.later("load", parts))
                return found
            case ir.Op(type, name, args):
                parts = [self.number(a) for a in args]
                key = (name, type, *parts)
                found = self.find(key)
                return self.operation(expr, key, parts) if found is None else found

    def operation(self, op: ir.Op, key: tuple[object, ...], parts: list[int]) -> int:
        home = max((self.scope_of[p] for p in parts), default=0)
        inside = [i for i, scope in enumerate(self.scopes) if scope.branch]
        home = max([home, *inside[-1:]])
        source = op.args[0].type if op.args else op.type
        address = op.type == ir.INDEX and op.name in ADDRESSED
        spread = op.name == "vec" and isinstance(op.args[0], ir.Load)  # loaded as a vector
        if not address and not spread:
            self.count(Operation(op.name, op.type, source), home)
        kind = op.name if op.type.dtype.kind == "float" or op.name in LATENCY else "integer"
        return self.put(key, home, self.later(kind, parts))

    def later(self, name: str, parts: list[int]) -> int:
        start = max((self.chain_of[p] for p in parts), default=-1)
        if start < 0:
            return -1
        return start + LATENCY.get(name, 1 if name == "integer" else FLOAT_LATENCY)

    def find(self, key: object) -> int | None:
        for scope in reversed(self.scopes):
            if key in scope.known:
                return scope.known[key]
        return None

    def put(self, key: object, scope: int, chain: int) -> int:
        number = self.fresh(scope, chain)
        self.scopes[scope].known[key] = number
        return number

    def address(self, buffer: str, indices: tuple[ir.Expr, ...], size: int) -> None:
        """Note `size` bytes from `indices` on; of places that differ by constants, the ends."""
        dims = self.buffers[buffer].dims
        indices = (*indices, *(ir.Const(ir.INDEX, 0) for _ in dims[len(indices) :]))
        split = [_without_constants(index) for index in indices]
        rest, shifts = tuple(r for r, _ in split), [c for _, c in split]
        ends = self.scopes[-1].places.setdefault((buffer, rest), [[c, c] for c in shifts])
        for end, shift in zip(ends, shifts, strict=True):
            end[0], end[1] = min(end[0], shift), max(end[1], shift)
        left = -(-size // self.buffers[buffer].dtype.bytes)
        for end, shift, dim in reversed(list(zip(ends, shifts, dims, strict=True))):
            wide = left if left <= 1 or not isinstance(dim, int) else min(left, dim)
            end[1] = max(end[1], shift + wide - 1)
            left = -(-left // max(1, wide))


def _without_constants(index: ir.Expr) -> tuple[tuple[ir.Expr, ...], int]:
    """The terms of a sum that are no constants, and the sum of those that are."""
    if isinstance(index, ir.Const):
        return (), int(index.value)
    if isinstance(index, ir.Op) and index.name == "add":
        (a, first), (b, second) = map(_without_constants, index.args)
        return (*a, *b), first + second
    return (index,), 0
