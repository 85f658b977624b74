"""The type rules of operators: literals adapt, everything else must match exactly.

A *literal* here is a bare Python number: a number in the source, a compile-time constant or an
`unroll` variable. It takes the dtype and lanes of the other operand. All else is a typed `Expr`,
and f32 with i32, or a scalar with a vector, is a `Mismatch`, never a silent conversion.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ondevice.dtypes import DType, boolean, f32
from ondevice.lang.kernel_ir import BOOL, INDEX, Const, Expr, Number, Op, Type

Operand = Expr | Number


class Mismatch(Exception):
    """A type rule is broken; the front end adds file, line and caret."""


# symbol in the source -> (name in the IR, meaning on Python integers for folding)
ARITHMETIC: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "+": ("add", operator.add),
    "-": ("sub", operator.sub),
    "*": ("mul", operator.mul),
    "/": ("div", operator.truediv),
    "//": ("floordiv", operator.floordiv),
    "%": ("mod", operator.mod),
    "&": ("and", operator.and_),
    "|": ("or", operator.or_),
    "^": ("xor", operator.xor),
    "<<": ("shl", operator.lshift),
    ">>": ("shr", operator.rshift),
}
COMPARISON: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "<": ("lt", operator.lt),
    "<=": ("le", operator.le),
    ">": ("gt", operator.gt),
    ">=": ("ge", operator.ge),
    "==": ("eq", operator.eq),
    "!=": ("ne", operator.ne),
}
INTEGER_KINDS = ("int", "uint", "index")


def is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def constant(type: Type, value: Number) -> Const:
    """A Const of `type`, rounded to it; Mismatch where the literal does not fit."""
    dtype = type.dtype
    if dtype.kind == "bool":
        if not isinstance(value, bool):
            raise Mismatch(f"{value!r} is not a bool")
        return Const(type, value)
    if isinstance(value, bool):
        raise Mismatch(f"{value!r} is a bool, where {type} is wanted")
    if dtype.kind == "float":
        with np.errstate(over="ignore"):
            return Const(type, float(dtype.np.type(value)))
    if isinstance(value, float):
        raise Mismatch(f"the float {value!r} cannot become {type}")
    low, high = int_range(dtype)
    if not low <= value <= high:
        raise Mismatch(f"{value} does not fit in {dtype}")
    return Const(type, value)


def int_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype."""
    if dtype.kind == "uint":
        return 0, (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1


def typed(value: Operand) -> Expr:
    """A literal on its own gets its default type: index, f32 or bool."""
    if isinstance(value, bool):
        return Const(BOOL, value)
    if isinstance(value, int):
        return constant(INDEX, value)
    if isinstance(value, float):
        return constant(Type(f32), value)
    return value


def adapt(value: Operand, type: Type) -> Expr:
    """`value` as an expression of exactly `type`; only a literal changes."""
    if isinstance(value, (bool, int, float)):
        return constant(type, value)
    if value.type is not type and value.type != type:
        raise Mismatch(f"{value.type} where {type} is wanted")
    return value


def unify(name: str, operands: Sequence[Operand]) -> tuple[Expr, ...]:
    """All operands in their one common type; literals adapt to the first typed operand."""
    exprs = [o for o in operands if not isinstance(o, (bool, int, float))]
    type = exprs[0].type if exprs else typed(operands[0]).type
    for other in exprs:
        if other.type is not type and other.type != type:
            raise Mismatch(f"{name} of {type} and {other.type}; use cast or vec")
    return tuple(adapt(o, type) for o in operands)


def binary(symbol: str, left: Operand, right: Operand) -> Operand:
    """`left symbol right`; literals and index constants are folded."""
    name, fold = ARITHMETIC[symbol]
    if is_number(left) and is_number(right):
        return fold_numbers(symbol, fold, left, right)
    a, b = unify(f"'{symbol}'", (left, right))
    kind = a.type.dtype.kind
    if symbol in "+-*":
        allowed = kind in INTEGER_KINDS or a.type.dtype == f32
    elif symbol == "/":
        allowed = a.type.dtype == f32
    elif symbol in ("&", "|", "^"):
        allowed = kind in INTEGER_KINDS or kind == "bool"
    else:
        allowed = kind in INTEGER_KINDS
    if not allowed:
        hint = "; f16 is for storage, cast it to f32" if a.type.dtype.name == "f16" else ""
        raise Mismatch(f"'{symbol}' is not defined on {a.type}{hint}")
    if symbol in ("<<", ">>") and isinstance(b, Const) and not 0 <= b.value < a.type.dtype.bits:
        raise Mismatch(f"a shift by {b.value} does not fit {a.type}")
    if kind == "index" and a.type.lanes == 1:
        return fold_index(symbol, fold, a, b) or Op(a.type, name, (a, b))
    return Op(a.type, name, (a, b))


def fold_numbers(symbol: str, fold: Callable[[Any, Any], Any], a: Operand, b: Operand) -> Number:
    try:
        result = fold(a, b)
    except (ArithmeticError, ValueError, TypeError) as error:
        raise Mismatch(f"'{symbol}' of {a!r} and {b!r}: {error}") from None
    assert isinstance(result, (bool, int, float))
    return result


def fold_index(symbol: str, fold: Callable[[Any, Any], Any], a: Expr, b: Expr) -> Expr | None:
    """Index arithmetic on constants is done here, so static sizes can steer `unroll` and `if`."""
    if isinstance(a, Const) and isinstance(b, Const):
        return constant(INDEX, fold_numbers(symbol, fold, a.value, b.value))
    if isinstance(b, Const):
        if (symbol in "+-" and b.value == 0) or (symbol in ("*", "//") and b.value == 1):
            return a
        if symbol in ("//", "%") and b.value == 0:
            raise Mismatch(f"'{symbol}' by zero")
        if (symbol, b.value) == ("%", 1):
            return Const(INDEX, 0)
    if isinstance(a, Const) and ((symbol, a.value) in (("+", 0), ("*", 1))):
        return b
    return None


def compare(symbol: str, left: Operand, right: Operand) -> Operand:
    """`left symbol right` as a bool of the operands' lanes."""
    name, fold = COMPARISON[symbol]
    if is_number(left) and is_number(right):
        return fold_numbers(symbol, fold, left, right)
    a, b = unify(f"'{symbol}'", (left, right))
    if a.type.dtype.kind == "bool" or a.type.dtype.name == "f16":
        raise Mismatch(f"'{symbol}' is not defined on {a.type}")
    if a.type == INDEX and isinstance(a, Const) and isinstance(b, Const):
        return Const(BOOL, fold(a.value, b.value))
    return Op(Type(boolean, a.type.lanes), name, (a, b))


def negate(value: Operand) -> Operand:
    """`-value`."""
    if isinstance(value, (bool, int, float)):
        return -value
    if value.type.dtype != f32 and value.type.dtype.kind not in ("int", "index"):
        raise Mismatch(f"'-' is not defined on {value.type}")
    if isinstance(value, Const) and value.type == INDEX:
        return constant(INDEX, -value.value)
    return Op(value.type, "neg", (value,))


def condition(value: Operand) -> Expr:
    """`value` as a scalar bool."""
    expr = typed(value)
    if expr.type != BOOL:
        hint = "; use select for vectors" if expr.type.dtype == boolean else ""
        raise Mismatch(f"a condition must be a scalar bool, not {expr.type}{hint}")
    return expr


def logical_not(value: Operand) -> Operand:
    if is_number(value):
        return not value
    expr = condition(value)
    if isinstance(expr, Const):
        return Const(BOOL, not expr.value)
    return Op(BOOL, "not", (expr,))


def logical(name: str, left: Operand, right: Operand) -> Expr:
    """`left and right` or `left or right` of scalar bools whose evaluation cannot fault."""
    return Op(BOOL, name, (condition(left), condition(right)))


def static_number(value: object) -> Number | None:
    """The number behind a literal or a scalar Const, else None."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Const) and value.type.lanes == 1:
        return value.value
    return None


def static_int(value: object, what: str) -> int:
    """A compile-time integer, or Mismatch naming `what` needs it."""
    number = static_number(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise Mismatch(f"{what} must be a compile-time integer")
    return number


def zero(dtype: DType) -> Number:
    """The zero of an element type."""
    return {"float": 0.0, "bool": False}.get(dtype.kind, 0)
