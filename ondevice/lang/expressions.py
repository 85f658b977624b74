"""From syntax to typed expressions: names, operators, intrinsics and memory.

`Expressions` is the half of the specializer that evaluates. A syntax node evaluates to a `Value`:
a literal or typed expression, or something that exists only at compile time (a buffer, a register
array, an element type, a function). Where Python would evaluate a part conditionally and the part
could fault, it becomes an `If`; else a `select`.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ondevice.dtypes import DTYPES, DType
from ondevice.errors import KernelError, nearest
from ondevice.lang import check
from ondevice.lang import kernel_ir as ir
from ondevice.lang.check import Mismatch, Operand, adapt, is_number, static_int, unify
from ondevice.lang.dsl import InlineFunction
from ondevice.lang.intrinsics import INTRINSICS, Intrinsic, dtype_of, lane_count, operand
from ondevice.lang.memory import build_dot_tile, build_load, build_prefetch, build_store
from ondevice.lang.parse import Source


@dataclass(frozen=True)
class RegisterArray:
    """`registers(init, *dims)`: one variable per place."""

    type: ir.Type
    names: dict[tuple[int, ...], str]


@dataclass(frozen=True)
class BoundStep:
    """A step of a Chain and the kernel buffers of its buffer parameters."""

    function: InlineFunction
    buffers: dict[str, ir.Buffer]


@dataclass(frozen=True)
class BoundHole:
    steps: tuple[BoundStep, ...]


Value = Operand | ir.Buffer | RegisterArray | DType | Intrinsic | InlineFunction | BoundHole | None


@dataclass
class Frame:
    """The names of one function body while it is expanded; inner scopes come last."""

    source: Source
    scopes: list[dict[str, Value]] = field(default_factory=lambda: [{}])

    def find(self, name: str) -> dict[str, Value] | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope
        return None


_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip


def symbol_of(node: ast.AST) -> str:
    """The source form of an operator node."""
    return _OPERATORS[type(node)]


@functools.cache
def signature_of(body: Callable[..., Any]) -> tuple[inspect.Signature, int]:
    """How a function is called, and with how many arguments if all are positional and wanted."""
    signature = inspect.signature(body)
    parameters = signature.parameters.values()
    plain = all(p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)
    return signature, len(parameters) if plain else -1


class Expressions:
    """Evaluates syntax in `frame`, emitting what must run first into `block`."""

    def __init__(self) -> None:
        self.frame: Frame
        self.block: list[ir.Stmt] = []
        self.scratch: list[ir.Buffer] = []
        self.used: dict[str, int] = {}
        self.outer: dict[tuple[Source, str], Value] = {}  # names from outside of functions
        self.fixed: set[str] = set()  # loop and task variables, scalars: never assigned
        self.pending_loads = 0  # loads that the current statement has evaluated, but not yet run
        self.stores = 0

    def expand_call(self, function: InlineFunction, node: ast.Call) -> Value:
        raise NotImplementedError

    def expand_hole(self, hole: BoundHole, node: ast.Call) -> Value:
        raise NotImplementedError

    def error(self, node: ast.AST, message: str) -> KernelError:
        return self.frame.source.error(node, message)

    def fresh(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`... where it is taken."""
        while name in self.used:
            self.used[name] += 1
            candidate = f"{name}_{self.used[name]}"
            if candidate not in self.used:
                name = candidate
        self.used[name] = 0
        return name

    def declare(self, name: str, value: ir.Expr) -> ir.Var:
        """A new variable that starts as `value`."""
        var = ir.Var(value.type, self.fresh(name))
        self.block.append(ir.Assign(var.name, value))
        return var

    # --- evaluation ------------------------------------------------------------------------------

    def evaluate(self, node: ast.expr) -> Value:
        """The value of a syntax node; KernelError with a caret where a type rule is broken."""
        try:
            return RULES.get(type(node), Expressions.unsupported)(self, node)
        except Mismatch as error:
            raise self.error(node, str(error)) from None

    def unsupported(self, node: Any) -> Value:
        raise Mismatch("this construct is not supported in kernels here")

    def number(self, node: ast.Constant) -> Value:
        if not isinstance(node.value, (bool, int, float)):
            return self.unsupported(node)
        return node.value

    def arithmetic(self, node: ast.BinOp) -> Value:
        a, b = self.operand(node.left), self.operand(node.right)
        return check.binary(symbol_of(node.op), a, b)

    def comparison(self, node: ast.Compare) -> Value:
        if len(node.ops) > 1:
            raise Mismatch("chained comparisons are not supported in kernels")
        a, b = self.operand(node.left), self.operand(node.comparators[0])
        return check.compare(symbol_of(node.ops[0]), a, b)

    def unary(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.USub):
            return check.negate(self.operand(node.operand))
        if isinstance(node.op, ast.Not):
            return check.logical_not(self.operand(node.operand))
        return self.unsupported(node)

    def operand(self, node: ast.expr) -> Operand:
        value = node.value if isinstance(node, ast.Constant) else self.evaluate(node)
        if isinstance(value, (bool, int, float)):
            return value
        if not isinstance(value, ir.Expr):
            raise self.error(node, "a value is wanted here")
        return value

    def lookup(self, node: ast.Name) -> Value:
        name, source = node.id, self.frame.source
        scope = self.frame.find(name)
        if scope is not None:
            return scope[name]
        if (source, name) not in self.outer:
            self.outer[source, name] = self.lookup_outside(name)
        return self.outer[source, name]

    def lookup_outside(self, name: str) -> Value:
        found = self.frame.source.globals.get(name)
        if isinstance(found, (bool, int, float, InlineFunction)):
            return found
        if name in INTRINSICS:
            return INTRINSICS[name]
        if isinstance(found, DType) or name in DTYPES:
            return dtype_of(found or DTYPES[name])
        known = [*INTRINSICS, *(n for s in self.frame.scopes for n in s)]
        raise Mismatch(f"unknown name {name!r}" + nearest(name, known).split(" known:")[0])

    def call(self, node: ast.Call) -> Value:
        function = self.evaluate(node.func)
        if isinstance(function, InlineFunction):
            return self.expand_call(function, node)
        if isinstance(function, BoundHole):
            return self.expand_hole(function, node)
        if not isinstance(function, Intrinsic):
            raise Mismatch("only intrinsics, @inline functions and holes can be called")
        if function.name == "load":
            return self.load(node)
        if function.build is None:
            raise Mismatch(f"{function.name}(...) cannot stand here")
        arguments = [self.evaluate(a) for a in node.args]
        keywords = {k.arg or "**": self.evaluate(k.value) for k in node.keywords}
        signature, count = signature_of(function.body)
        if len(arguments) == count and not keywords:
            return function.build(*arguments)
        try:
            bound = signature.bind(*arguments, **keywords)
        except TypeError as error:
            raise Mismatch(f"{function.name}: {error}") from None
        return function.build(*bound.args)

    # --- memory ----------------------------------------------------------------------------------

    def buffer(self, node: ast.expr) -> ir.Buffer:
        value = self.evaluate(node)
        if not isinstance(value, ir.Buffer):
            raise self.error(node, "a buffer is wanted here")
        return value

    def keywords(self, node: ast.Call, *allowed: str) -> dict[str, Value]:
        for k in node.keywords:
            if k.arg not in allowed:
                raise self.error(
                    k.value, f"unknown keyword {k.arg!r}; allowed: {', '.join(allowed)}"
                )
        return {str(k.arg): self.evaluate(k.value) for k in node.keywords}

    def load(self, node: ast.Call) -> ir.Load:
        """`load(buffer, *indices, lanes=16, count=None, as_=None)`."""
        if not node.args:
            raise Mismatch("load needs a buffer")
        buffer = self.buffer(node.args[0])
        indices = [self.operand(a) for a in node.args[1:]]
        options = self.keywords(node, "lanes", "count", "as_")
        lanes = lane_count(options.get("lanes", 16))
        count = operand(options["count"]) if "count" in options else None
        as_ = dtype_of(options["as_"]) if "as_" in options else None
        self.pending_loads += 1
        return build_load(buffer, indices, lanes, count, as_)

    def store(self, node: ast.Call) -> None:
        """`store(buffer, *indices, value, count=None)` as a statement."""
        if len(node.args) < 3:
            raise Mismatch("store needs a buffer, indices and a value")
        buffer = self.buffer(node.args[0])
        *indices, value = (self.operand(a) for a in node.args[1:])
        options = self.keywords(node, "count")
        count = operand(options["count"]) if "count" in options else None
        self.block.append(build_store(buffer, indices, value, count))
        self.stores += 1

    def prefetch(self, node: ast.Call) -> None:
        """`prefetch(buffer, *indices)` as a statement."""
        self.keywords(node)
        if not node.args:
            raise Mismatch("prefetch needs a buffer and indices")
        buffer, indices = self.buffer(node.args[0]), [self.operand(a) for a in node.args[1:]]
        self.block.append(build_prefetch(buffer, indices))

    def dot_tile(self, node: ast.Call) -> None:
        """`dot_tile(out, *indices, rows, *indices, columns, *indices)` as a statement."""
        self.keywords(node)
        out, rows, columns = self.tile_places([self.evaluate(a) for a in node.args])
        self.block.append(build_dot_tile(out, rows, columns))
        self.stores += 1

    def tile_places(self, values: list[Value]) -> list[tuple[ir.Buffer, list[Operand]]]:
        """Three buffers, each with the indices that follow it."""
        places: list[tuple[ir.Buffer, list[Operand]]] = []
        for value in values:
            if isinstance(value, ir.Buffer):
                places.append((value, []))
            elif places and isinstance(value, (bool, int, float, ir.Expr)):
                places[-1][1].append(value)
            else:
                raise Mismatch("dot_tile takes buffers and indices")
        if len(places) != 3:
            raise Mismatch("dot_tile takes places of its result, of rows and of columns")
        return places

    def subscript(self, node: ast.Subscript) -> tuple[ir.Buffer | RegisterArray, list[Operand]]:
        target = self.evaluate(node.value)
        if not isinstance(target, (ir.Buffer, RegisterArray)):
            raise self.error(node, "only buffers and registers can be indexed")
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return target, [self.operand(p) for p in parts]

    def read_subscript(self, node: ast.Subscript) -> ir.Expr:
        return self.read_place(*self.subscript(node))

    def read_place(self, target: ir.Buffer | RegisterArray, indices: list[Operand]) -> ir.Expr:
        if isinstance(target, RegisterArray):
            return ir.Var(target.type, register_name(target, indices))
        self.pending_loads += 1
        return build_load(target, indices, 1)

    def write_place(
        self, target: ir.Buffer | RegisterArray, indices: list[Operand], value: Operand
    ) -> None:
        if isinstance(target, RegisterArray):
            name = register_name(target, indices)
            self.block.append(ir.Assign(name, adapt(value, target.type)))
            return
        expr = adapt(value, ir.Type(target.dtype))
        self.block.append(build_store(target, indices, expr))
        self.stores += 1

    # --- conditional parts -----------------------------------------------------------------------

    def capture(self, node: ast.expr) -> tuple[list[ir.Stmt], Operand]:
        """Evaluate `node` aside: what it emits, and its value."""
        outer, self.block = self.block, []
        value = self.operand(node)
        emitted, self.block = self.block, outer
        return emitted, value

    def choose(self, node: ast.IfExp) -> Value:
        """`a if condition else b`; a compile-time condition leaves only one side."""
        test = self.operand(node.test)
        known = check.static_number(test)
        if known is not None:
            return self.evaluate(node.body if known else node.orelse)
        condition = check.condition(test)
        first, a = self.capture(node.body)
        second, b = self.capture(node.orelse)
        x, y = unify("if ... else", (a, b))
        if not (first or second or ir.can_trap(x) or ir.can_trap(y)):
            return ir.Op(x.type, "select", (condition, x, y))
        return self.branch(condition, (first, x), (second, y))

    def branch(
        self,
        condition: ir.Expr,
        then: tuple[list[ir.Stmt], ir.Expr],
        orelse: tuple[list[ir.Stmt], ir.Expr],
    ) -> ir.Var:
        """A variable set in one of two branches."""
        zero = ir.Const(then[1].type, check.zero(then[1].type.dtype))
        var = self.declare("choice", zero)
        blocks = [(*block, ir.Assign(var.name, value)) for block, value in (then, orelse)]
        self.block.append(ir.If(condition, blocks[0], blocks[1]))
        return var

    def logical(self, expression: ast.BoolOp) -> Operand:
        """`and` / `or`, left to right; stops where Python would."""
        name = "and" if isinstance(expression.op, ast.And) else "or"
        left = self.operand(expression.values[0])
        for node in expression.values[1:]:
            known = check.static_number(left)
            if known is not None:
                if bool(known) == (name == "or"):
                    return left
                left = self.operand(node)
                continue
            condition = check.condition(left)
            emitted, right = self.capture(node)
            other = check.condition(right)
            if not emitted and not ir.can_trap(other):
                left = check.logical(name, condition, other)
            else:
                default: tuple[list[ir.Stmt], ir.Expr] = (
                    [],
                    ir.Const(condition.type, name == "or"),
                )
                sides = (
                    ((emitted, other), default) if name == "and" else (default, (emitted, other))
                )
                left = self.branch(condition, *sides)
        return left if is_number(left) else check.condition(left)

    def settle(self, name: str, value: Value) -> Value:
        """Make a loaded or computed value a variable, so that it is evaluated once and now."""
        if isinstance(value, (ir.Op, ir.Load)):
            return self.declare(name, value)
        return value


RULES: dict[type[ast.AST], Callable[[Expressions, Any], Value]] = {
    ast.Constant: Expressions.number,
    ast.Name: Expressions.lookup,
    ast.BinOp: Expressions.arithmetic,
    ast.Compare: Expressions.comparison,
    ast.UnaryOp: Expressions.unary,
    ast.BoolOp: Expressions.logical,
    ast.IfExp: Expressions.choose,
    ast.Subscript: Expressions.read_subscript,
    ast.Call: Expressions.call,
}


def register_name(array: RegisterArray, indices: list[Operand]) -> str:
    """The variable behind `array[indices]`."""
    place = tuple(static_int(i, "an index of registers") for i in indices)
    if place not in array.names:
        raise Mismatch(f"registers index {list(place)} is out of range")
    return array.names[place]
