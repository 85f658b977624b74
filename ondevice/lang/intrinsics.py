"""INTRINSICS: everything a kernel can call, one row each.

A row holds the meaning (a NumPy body from `reference`), and `build`, the type rule: it takes what
the arguments evaluated to and returns a typed expression, or raises Mismatch. Printers hold one
lowering per row; a test keeps the tables in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ondevice.dtypes import DTYPES, DType, boolean, f32, i8, i32, index, u8
from ondevice.lang import reference
from ondevice.lang.check import (
    Mismatch,
    Operand,
    adapt,
    binary,
    compare,
    constant,
    static_int,
    typed,
    unify,
)
from ondevice.lang.kernel_ir import INDEX, Const, Expr, Op, Type

MAX_LANES = 256
CASTABLE = ("f32", "f16", "i32", "i16", "i8", "u8", "u16", "u32", "index")


@dataclass(frozen=True)
class Intrinsic:
    """`build` is None for the forms that the front end itself expands (memory and loops)."""

    name: str
    body: Callable[..., Any]
    build: Callable[..., Operand] | None = None


def lane_count(value: object) -> int:
    """A compile-time power of two up to MAX_LANES."""
    lanes = static_int(value, "the number of lanes")
    if lanes < 1 or lanes > MAX_LANES or lanes & (lanes - 1):
        raise Mismatch(f"{lanes} lanes; a power of two up to {MAX_LANES} is wanted")
    return lanes


def dtype_of(value: object) -> DType:
    """The element type that an argument names."""
    if isinstance(value, Intrinsic) and value.name == "index":
        return index
    if not isinstance(value, DType) or value.name not in DTYPES:
        raise Mismatch("an element type such as f32 is wanted here")
    return DTYPES[value.name]


def operand(value: object) -> Operand:
    """A literal or typed expression, not a buffer, dtype or function."""
    if isinstance(value, (bool, int, float, Expr)):
        return value
    raise Mismatch("a value is wanted here")


def of_f32(name: str) -> Callable[[object], Expr]:
    def build(x: object) -> Expr:
        expr = typed(operand(x))
        if expr.type.dtype != f32:
            raise Mismatch(f"{name} of {expr.type}; only f32 has it")
        return Op(expr.type, name, (expr,))

    return build


def build_vec(value: object, lanes: object) -> Expr:
    count = lane_count(lanes)
    value = operand(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return constant(Type(i32, count), value)
    expr = typed(value)
    if expr.type.lanes != 1:
        raise Mismatch(f"vec of {expr.type}, which is a vector already")
    if expr.type == INDEX:
        raise Mismatch("vec of an index; cast it first, as in vec(cast(i32, n), 16)")
    type = Type(expr.type.dtype, count)
    if isinstance(expr, Const):
        return Const(type, expr.value)
    return expr if count == 1 else Op(type, "vec", (expr,))


def build_iota(lanes: object) -> Expr:
    return Op(Type(i32, lane_count(lanes)), "iota", ())


def build_cast(dtype: object, value: object) -> Expr:
    to = dtype_of(dtype)
    value = operand(value)
    if isinstance(value, (int, float)) and to.kind != "bool":
        return constant(Type(to), value if to.kind == "float" else int(value))
    expr = typed(value)
    source = expr.type.dtype
    if source == to:
        return expr
    if source.name not in CASTABLE or to.name not in CASTABLE:
        raise Mismatch(f"cast from {source} to {to} does not exist")
    for half, other in ((source, to), (to, source)):
        if half.name == "f16" and other != f32:
            raise Mismatch(f"cast from {source} to {to} does not exist; go through f32")
    if index in (source, to) and expr.type.lanes > 1:
        raise Mismatch("there are no vectors of index")
    return Op(Type(to, expr.type.lanes), "cast", (expr,))


def build_index(value: object) -> Expr:
    return build_cast(index, value)


def build_bitcast(dtype: object, value: object) -> Expr:
    to = dtype_of(dtype)
    expr = typed(operand(value))
    if index in (to, expr.type.dtype) or boolean in (to, expr.type.dtype):
        raise Mismatch(f"bitcast from {expr.type} to {to} does not exist")
    lanes, rest = divmod(expr.type.bits, to.bits)
    if rest or lanes == 0:
        raise Mismatch(f"the {expr.type.bits} bits of {expr.type} are no whole number of {to}")
    type = Type(to, lanes)
    return expr if type == expr.type else Op(type, "bitcast", (expr,))


def build_half(name: str) -> Callable[[object], Expr]:
    def build(value: object) -> Expr:
        expr = typed(operand(value))
        if expr.type.lanes < 2:
            raise Mismatch(f"{name} of {expr.type}; a vector is wanted")
        return Op(Type(expr.type.dtype, expr.type.lanes // 2), name, (expr,))

    return build


def build_join(a: object, b: object) -> Expr:
    left, right = unify("join", (operand(a), operand(b)))
    lane_count(2 * left.type.lanes)
    return Op(Type(left.type.dtype, 2 * left.type.lanes), "join", (left, right))


def build_fma(a: object, b: object, c: object) -> Expr:
    args = unify("fma", (operand(a), operand(b), operand(c)))
    if args[0].type.dtype != f32:
        raise Mismatch(f"fma of {args[0].type}; only f32 has it")
    return Op(args[0].type, "fma", args)


def build_choice(name: str, symbol: str) -> Callable[[object, object], Operand]:
    """min and max: `a if a symbol b else b`; folded on literals and index constants."""

    def build(a: object, b: object) -> Operand:
        left, right = operand(a), operand(b)
        first = compare(symbol, left, right)
        if isinstance(first, bool):
            return left if first else right
        x, y = unify(name, (left, right))
        if isinstance(first, Const):
            return x if first.value else y
        return Op(x.type, name, (x, y))

    return build


def build_abs(x: object) -> Operand:
    value = operand(x)
    if isinstance(value, (bool, int, float)):
        return abs(value)
    if value.type.dtype != f32 and value.type.dtype.kind != "int":
        raise Mismatch(f"abs of {value.type} does not exist")
    return Op(value.type, "abs", (value,))


def build_select(condition: object, a: object, b: object) -> Expr:
    chooser = typed(operand(condition))
    x, y = unify("select", (operand(a), operand(b)))
    if chooser.type.dtype != boolean or chooser.type.lanes not in (1, x.type.lanes):
        raise Mismatch(f"select of {x.type} by {chooser.type}")
    return Op(x.type, "select", (chooser, x, y))


def build_ceildiv(a: object, b: object) -> Operand:
    divisor = operand(b)
    return binary("//", binary("+", operand(a), binary("-", divisor, 1)), divisor)


def build_reduce(name: str) -> Callable[[object], Expr]:
    def build(value: object) -> Expr:
        expr = typed(operand(value))
        if expr.type.lanes < 2 or expr.type.dtype not in (f32, i32):
            raise Mismatch(f"{name} of {expr.type}; a vector of f32 or i32 is wanted")
        return Op(Type(expr.type.dtype), name, (expr,))

    return build


def build_dot4(name: str, left: DType = u8) -> Callable[[object, object, object], Expr]:
    types = (Type(i32, 16), Type(left, 64), Type(i8, 64))

    def build(acc: object, u: object, s: object) -> Expr:
        values = (operand(acc), operand(u), operand(s))
        args = tuple(adapt(value, type) for value, type in zip(values, types, strict=True))
        return Op(types[0], name, args)

    return build


_ROWS = (
    Intrinsic("load", reference.load),
    Intrinsic("store", reference.store),
    Intrinsic("prefetch", reference.prefetch),
    Intrinsic("scratch", reference.scratch),
    Intrinsic("registers", reference.registers),
    Intrinsic("range", range),
    Intrinsic("parallel", reference.parallel),
    Intrinsic("unroll", reference.unroll),
    Intrinsic("vec", reference.vec, build_vec),
    Intrinsic("iota", reference.iota, build_iota),
    Intrinsic("cast", reference.cast, build_cast),
    Intrinsic("index", reference.index, build_index),
    Intrinsic("bitcast", reference.bitcast, build_bitcast),
    Intrinsic("low", reference.low, build_half("low")),
    Intrinsic("high", reference.high, build_half("high")),
    Intrinsic("join", reference.join, build_join),
    Intrinsic("fma", reference.fma, build_fma),
    Intrinsic("sqrt", reference.sqrt, of_f32("sqrt")),
    Intrinsic("floor", reference.floor, of_f32("floor")),
    Intrinsic("round", reference.round_half_even, of_f32("round")),
    Intrinsic("min", reference.minimum, build_choice("min", "<")),
    Intrinsic("max", reference.maximum, build_choice("max", ">")),
    Intrinsic("abs", reference.absolute, build_abs),
    Intrinsic("select", reference.select, build_select),
    Intrinsic("ceildiv", reference.ceildiv, build_ceildiv),
    Intrinsic("reduce_add", reference.reduce_add, build_reduce("reduce_add")),
    Intrinsic("reduce_max", reference.reduce_max, build_reduce("reduce_max")),
    Intrinsic("reduce_min", reference.reduce_min, build_reduce("reduce_min")),
    Intrinsic("dot4", reference.dot4, build_dot4("dot4")),
    Intrinsic("dot4_u7", reference.dot4_u7, build_dot4("dot4_u7")),
    Intrinsic("dot4_i8", reference.dot4_i8, build_dot4("dot4_i8", i8)),
    Intrinsic("dot_tile", reference.dot_tile),
)
INTRINSICS: dict[str, Intrinsic] = {row.name: row for row in _ROWS}
