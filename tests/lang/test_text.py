"""`parse_kernel(print_kernel(k)) == k`, on kernels made of random typed expressions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.dtypes import boolean, f16, f32, i8, i32, u8
from ondevice.errors import KernelError
from ondevice.lang import check, kernel, parallel, unroll
from ondevice.lang import kernel_ir as ir
from ondevice.lang.check import Mismatch, constant, typed
from ondevice.lang.intrinsics import INTRINSICS
from ondevice.lang.memory import build_load
from ondevice.lang.specialize import specialize
from ondevice.lang.text import parse_kernel, print_kernel

BUFFERS = {d: ir.Buffer(f"b_{d}", d, ("N", 512)) for d in (f32, f16, i8, u8, i32)}
NUMBERS = {"float": st.floats(width=16), "bool": st.booleans()}


def constants(type):
    low, high = (0, 100) if type.dtype.kind == "uint" else (-100, 100)
    numbers = NUMBERS.get(type.dtype.kind, st.integers(low, high))
    return numbers.map(lambda value: constant(type, value))


@st.composite
def expressions(draw, type, depth=3):
    """A well-typed expression of `type`, built by the language's own type rules."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(leaves(type))

    def part(t=type):
        return draw(expressions(t, depth - 1))

    dtype, lanes = type.dtype, type.lanes
    choices = ["select"] if dtype != boolean else ["compare", "not"] if lanes == 1 else ["compare"]
    if dtype == f32:
        choices += ["+", "-", "*", "/", "fma", "min", "max", "sqrt", "abs", "neg", "cast"]
    elif dtype.kind in ("int", "uint", "index"):
        choices += ["+", "-", "*", "&", "^", "min", "max"]
    if 1 < lanes < 32:
        choices += ["low", "join"] + (["vec"] if type.dtype.kind != "bool" else [])
    try:
        return apply(draw, draw(st.sampled_from(choices)), type, part)
    except Mismatch:  # folding may leave a range, e.g. of two large index constants
        return draw(leaves(type))


def apply(draw, name, type, part):
    """An operator or intrinsic called `name` whose result is of `type`."""
    lanes = type.lanes
    if name in check.ARITHMETIC:
        return typed(check.binary(name, part(), part()))
    if name == "compare":
        other = ir.Type(draw(st.sampled_from([f32, i32])), lanes)
        symbol = draw(st.sampled_from(list(check.COMPARISON)))
        return typed(check.compare(symbol, part(other), part(other)))
    if name in ("not", "neg"):
        return typed({"not": check.logical_not, "neg": check.negate}[name](part()))
    half, double = ir.Type(type.dtype, lanes // 2), ir.Type(type.dtype, 2 * lanes)
    some = draw(st.sampled_from([1, lanes])) if name == "select" else lanes
    build, arguments = INTRINSICS[name].build, {
        "select": lambda: (part(ir.Type(boolean, some)), part(), part()),
        "fma": lambda: (part(), part(), part()),
        "sqrt": lambda: (part(),),
        "abs": lambda: (part(),),
        "cast": lambda: (f32, part(ir.Type(draw(st.sampled_from([f16, i32, i8, u8])), lanes))),
        "low": lambda: (part(double),),
        "join": lambda: (part(half), part(half)),
        "vec": lambda: (part(ir.Type(type.dtype)), lanes),
        "min": lambda: (part(), part()),
        "max": lambda: (part(), part()),
    }  # fmt: skip
    return typed(build(*arguments[name]()))


def leaves(type):
    simple = [constants(type)]
    if type == ir.INDEX:
        return st.one_of(*simple, st.sampled_from([ir.Var(ir.INDEX, n) for n in ("N", "t", "k")]))
    if type.dtype in BUFFERS:
        place = [ir.Var(ir.INDEX, "t"), ir.Var(ir.INDEX, "k")]
        buffer = BUFFERS[type.dtype]
        simple.append(st.just(build_load(buffer, place, type.lanes)))
        simple.append(st.just(build_load(buffer, place, type.lanes, ir.Var(ir.INDEX, "N"))))
        simple.append(st.just(build_load(BUFFERS[u8], place, type.lanes, None, type.dtype)))
    return st.one_of(simple)


TYPES = st.builds(ir.Type, st.sampled_from([f32, i32, u8]), st.sampled_from([1, 2, 16]))


@st.composite
def kernels(draw):
    statements = []
    for i in range(draw(st.integers(1, 3))):
        type = draw(TYPES)
        value = draw(expressions(type))
        statement = ir.Assign(f"v{i}", value)
        if draw(st.booleans()):
            place = (draw(expressions(ir.INDEX, 1)), ir.Var(ir.INDEX, "k"))
            count = draw(st.none() | st.just(ir.Var(ir.INDEX, "N")))
            try:
                check.adapt(place[0], ir.INDEX)
                statement = ir.Store(
                    f"b_{type.dtype}", (ir.Var(ir.INDEX, "t"), place[1]), value, count
                )
            except Mismatch:
                pass
        if draw(st.booleans()):
            other = (
                (ir.Assign(f"w{i}", draw(expressions(ir.INDEX))),) if draw(st.booleans()) else ()
            )
            statement = ir.If(draw(expressions(ir.BOOL)), (statement,), other)
        statements.append(statement)
    loop = ir.For("k", draw(expressions(ir.INDEX, 0)), ir.Var(ir.INDEX, "N"), 2, tuple(statements))
    if loop.start == ir.Var(ir.INDEX, "k"):
        loop = ir.For("k", ir.Var(ir.INDEX, "t"), loop.stop, 2, loop.body)
    scratch = (ir.Buffer("spare", f32, (3, 4)),) if draw(st.booleans()) else ()
    extents = (ir.Var(ir.INDEX, "N"),)
    return ir.Kernel("random", tuple(BUFFERS.values()), scratch, ("N",), ("t",), extents, (loop,))


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_text_parses_back(made):
    text = print_kernel(made)
    assert parse_kernel(text) == made
    assert print_kernel(parse_kernel(text)) == text


@kernel
def small(x: f32[S, 4], y: f32[S, 4], *, factor: float):
    """Doc."""
    for s in parallel(S):
        for k in unroll(2):
            if x[s, k] < 0.0:
                y[s, k] = -x[s, k] * factor


GOLDEN = """\
def small(x: f32[S, 4], y: f32[S, 4], *, S: index):
    for s in parallel(S):
        if x[s, 0] < f32(0.0):
            y[s, 0] = (-x[s, 0]) * f32(0.5)
        if x[s, 1] < f32(0.0):
            y[s, 1] = (-x[s, 1]) * f32(0.5)
"""


def test_text_reads_like_the_language():
    assert print_kernel(specialize(small, {}, {"factor": 0.5})) == GOLDEN


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("x[s, 0] < f32(0.0)", "x[s, 0] < 0", "line 3: '<' of f32 and index"),
        ("y[s, 0] =", "y[s] =", "line 4: y: f32"),
        ("parallel(S)", "range(S)", "line 2: the last statement"),
        ("f32(0.5)", "half", "line 4: this is no expression"),
        ("def small", "class small", "line 1"),
        ("y[s, 1] =", "while y: pass #", "line 6"),
    ],
)
def test_wrong_text_is_refused(old, new, message):
    with pytest.raises(KernelError, match=message):
        parse_kernel(GOLDEN.replace(old, new))


def test_constants_keep_their_bits():
    for value in (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 0.1):
        made = constant(ir.Type(f32, 16), float(value))
        body = (ir.Assign("a", made),)
        whole = ir.Kernel("c", (), (), (), ("t",), (constant(ir.INDEX, 1),), body)
        assert parse_kernel(print_kernel(whole)) == whole
