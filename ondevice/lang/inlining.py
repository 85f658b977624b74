"""Expansion of @inline calls and of holes: hygienic, arguments evaluated once.

A body is expanded in a frame of its own, so its names never meet the caller's; variables get fresh
names in the kernel. Buffers are passed by reference, and the dims of a buffer parameter's
annotation name the dims of the buffer passed.
"""

from __future__ import annotations

import ast

from ondevice.dtypes import DTYPES, DType
from ondevice.lang.check import Mismatch, typed
from ondevice.lang.dsl import InlineFunction
from ondevice.lang.expressions import BoundHole, Expressions, Frame, Value
from ondevice.lang.kernel_ir import INDEX, Buffer, Const, Expr, Var
from ondevice.lang.parse import Parameter

MAX_DEPTH = 32


def dim_expr(dim: int | str) -> Expr:
    """A dimension as an expression of type index."""
    return Const(INDEX, dim) if isinstance(dim, int) else Var(INDEX, dim)


class Inlining(Expressions):
    """Expressions that can call @inline functions."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def run(self, statements: tuple[ast.stmt, ...]) -> None:
        raise NotImplementedError

    def expand_call(self, function: InlineFunction, node: ast.Call) -> Value:
        pending = self.pending_loads
        arguments = [self.evaluate(a) for a in node.args]
        keywords = {k.arg or "**": self.evaluate(k.value) for k in node.keywords}
        return self.expand(function, node, arguments, keywords, pending)

    def expand_hole(self, hole: BoundHole, node: ast.Call) -> Value:
        """Thread the first argument through the steps; each sees the same other arguments."""
        if not node.args or node.keywords:
            raise Mismatch("a hole is called as hole(value, *places)")
        pending = self.pending_loads
        value, *places = (self.evaluate(a) for a in node.args)
        if len(hole.steps) > 1:  # each step would evaluate the places anew
            places = [self.settle("place", p) for p in places]
        for step in hole.steps:
            given = iter((value, *places))
            arguments = [
                step.buffers[p.name] if p.kind == "buffer" else next(given, None)
                for p in step.function.source.positional
            ]
            if len(list(given)) or None in arguments:
                wanted = sum(p.kind == "value" for p in step.function.source.positional)
                raise Mismatch(
                    f"step {step.function.name} takes {wanted} values, the hole gives "
                    f"{len(node.args)}"
                )
            value = self.expand(step.function, node, arguments, {}, pending)
        return value

    def expand(
        self,
        function: InlineFunction,
        node: ast.Call,
        arguments: list[Value],
        keywords: dict[str, Value],
        pending: int,
    ) -> Value:
        """The value that the body returns, its statements emitted before the current one."""
        source = function.source
        if self.depth >= MAX_DEPTH:
            raise Mismatch(f"{function.name} is nested too deeply; recursion is not supported")
        if len(arguments) != len(source.positional):
            wanted = len(source.positional)
            raise Mismatch(f"{function.name} takes {wanted} arguments, not {len(arguments)}")
        frame = Frame(source)
        frame.scopes[0] |= self.constants_of(function, keywords)
        for parameter, value in zip(source.positional, arguments, strict=True):
            self.bind_argument(frame, parameter, value)
        self.pending_loads = 0
        outer, stores = self.frame, self.stores
        self.frame, self.depth = frame, self.depth + 1
        body = source.body
        last = body[-1] if body and isinstance(body[-1], ast.Return) else None
        self.run(body[:-1] if last else body)
        result = self.evaluate(last.value) if last and last.value else None
        self.frame, self.depth = outer, self.depth - 1
        self.pending_loads += pending
        if self.stores > stores and pending:
            raise Mismatch(f"{function.name} stores; call it in a statement of its own")
        return result

    def constants_of(self, function: InlineFunction, given: dict[str, Value]) -> dict[str, Value]:
        values: dict[str, Value] = dict(function.function.__kwdefaults__ or {})
        values |= dict(function.constants)
        names = [p.name for p in function.source.constants]
        for name, value in given.items():
            if name not in names:
                raise Mismatch(f"{function.name} has no compile-time parameter {name!r}")
            values[name] = value
        for name in names:
            if name not in values:
                raise Mismatch(f"{function.name}: compile-time parameter {name!r} is missing")
            if isinstance(values[name], Expr) and not isinstance(values[name], Const):
                raise Mismatch(f"{function.name}: {name!r} must be known at compile time")
        return values

    def bind_argument(self, frame: Frame, parameter: Parameter, value: Value) -> None:
        scope = frame.scopes[0]
        if parameter.kind == "value":
            value = self.settle(parameter.name, value)
            if parameter.name in frame.source.reassigned and isinstance(value, (int, float, Expr)):
                value = self.declare(parameter.name, typed(value))
            scope[parameter.name] = value
            return
        if not isinstance(value, Buffer) or len(value.dims) != len(parameter.dims):
            raise Mismatch(f"{parameter.name} must be a buffer of {len(parameter.dims)} dims")
        dtype = scope.get(parameter.dtype, DTYPES.get(parameter.dtype))
        if not isinstance(dtype, DType) or dtype.name != value.dtype.name:
            raise Mismatch(f"{parameter.name} is {parameter.dtype}, given {value}")
        scope[parameter.name] = value
        for name, dim in zip(parameter.dims, value.dims, strict=True):
            if isinstance(name, str):
                if scope.setdefault(name, dim_expr(dim)) != dim_expr(dim):
                    raise Mismatch(f"{parameter.name}: dimension {name} is {dim}, elsewhere other")
            elif name != dim:
                raise Mismatch(f"{parameter.name}: a dimension is {dim}, not {name}")
