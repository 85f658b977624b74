"""Every operator and intrinsic, compiled for each CPU, equals its NumPy body bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.codegen.operators import LOWERINGS
from ondevice.lang import (
    Chain,
    DType,
    Inline,
    bitcast,
    cast,
    dot4,
    dot4_i8,
    dot4_u7,
    f16,
    f32,
    floor,
    fma,
    high,
    i8,
    i16,
    i32,
    inline,
    iota,
    join,
    kernel,
    load,
    low,
    parallel,
    reduce_add,
    reduce_max,
    reduce_min,
    select,
    sqrt,
    store,
    u8,
    u16,
    u32,
    vec,
)
from ondevice.lang.check import ARITHMETIC, COMPARISON
from ondevice.lang.intrinsics import INTRINSICS

SEED = 7


@kernel
def apply(
    x: a[N], y: a[N], z: a[N], out: b[M], *, f: Inline, a: DType, b: DType, lanes: int, to: int
):
    """out[to * t ...] = f(x, y, z) on `lanes` lanes of each; `to` lanes come back."""
    for t in parallel(N // lanes):
        n = t * lanes
        result = f(load(x, n, lanes=lanes), load(y, n, lanes=lanes), load(z, n, lanes=lanes))
        store(out, t * to, result)


def function(*parameters):
    """Mark a test function with its dtypes, lanes and result lanes."""

    def mark(f):
        CASES[f.__name__] = (Chain((inline(f),)), *parameters)
        return f

    return mark


CASES = {}


@function(f32, f32, 16, 16)
def arithmetic_f32(x, y, z):
    return x + y * z - x / (y * y + 1.0) + (-z) * 2


@function(i32, i32, 16, 16)
def arithmetic_i32(x, y, z):
    return (x + y * 3) - (x & y) + (x | 5) * (y ^ z) - (-x) + (x << 3) + (y >> 2)


@function(u8, u8, 64, 64)
def arithmetic_u8(x, y, z):
    return ((x & 15) + (y >> 4)) ^ (z << 1)


@function(i8, i8, 32, 32)
def arithmetic_i8(x, y, z):
    return (x >> 3) + y * z


@function(u32, u32, 8, 8)
def unsigned(x, y, z):
    return (x >> 7) ^ select(x < y, x, z)


@function(i32, i32, 8, 8)
def division(x, y, z):
    return (x & 65535) // ((y & 255) + 1) + (z & 65535) % 7


@function(f32, f32, 16, 16)
def fused(x, y, z):
    return fma(x, y, z)


@function(f32, f32, 1, 1)
def fused_scalar(x, y, z):
    return fma(x, y, -z) * 0.1


@function(f32, f32, 16, 16)
def roots(x, y, z):
    return sqrt(abs(x)) + floor(y * 0.001) - round(z * 0.001)


@function(f32, f32, 1, 1)
def roots_scalar(x, y, z):
    return sqrt(abs(x)) + floor(y * 0.001) - round(z * 0.001)


@function(f32, f32, 16, 16)
def extremes(x, y, z):
    return min(max(x, y), z) + max(0.0, x) - min(y, 0.0)


@function(i32, i32, 16, 16)
def extremes_i32(x, y, z):
    return min(max(x, y), z) + abs(y)


@function(u8, u8, 16, 16)
def extremes_u8(x, y, z):
    return min(max(x, y), z)


@function(f32, i32, 16, 16)
def comparisons(x, y, z):
    lt = select(x < y, vec(1, 16), vec(0, 16))
    le = select(x <= y, vec(2, 16), vec(0, 16))
    gt = select(x > y, vec(4, 16), vec(0, 16))
    ge = select(x >= z, vec(8, 16), vec(0, 16))
    eq = select(x == y, vec(16, 16), vec(0, 16))
    return lt + le + gt + ge + eq + select((x != y) & (y < z), vec(32, 16), vec(0, 16))


@function(i32, i32, 1, 1)
def comparisons_scalar(x, y, z):
    return 1 if (x < y and not y >= z) or x == 7 else z


@function(f32, f32, 16, 16)
def half_precision(x, y, z):
    return cast(f32, cast(f16, x * 0.0001))


@function(f16, f32, 16, 16)
def widen_half(x, y, z):
    return cast(f32, x) + cast(f32, y) * cast(f32, z)


@function(f32, f16, 16, 16)
def narrow_half(x, y, z):
    return cast(f16, x * 0.001)


@function(f32, i8, 16, 16)
def quantize(x, y, z):
    return cast(i8, min(max(round(x * 0.0123), -127.0), 127.0))


@function(f32, u8, 16, 16)
def quantize_u8(x, y, z):
    return cast(u8, min(max(round(x * 0.0123), 0.0), 255.0))


@function(i8, f32, 16, 16)
def widen_i8(x, y, z):
    return cast(f32, cast(i32, x) * cast(i32, y)) + cast(f32, z)


@function(u8, f32, 16, 16)
def widen_u8(x, y, z):
    return cast(f32, x) + cast(f32, cast(i32, y))


@function(i32, f32, 16, 16)
def rounded_i32(x, y, z):
    return cast(f32, x) + cast(f32, cast(i8, y)) + cast(f32, cast(u32, z))


@function(i16, u16, 16, 16)
def sixteen_bits(x, y, z):
    return bitcast(u16, x + y) >> 3


@function(f32, i32, 16, 16)
def bits(x, y, z):
    return bitcast(i32, x) ^ bitcast(i32, vec(1.5, 16))


@function(i32, u8, 16, 64)
def bytes_of(x, y, z):
    return bitcast(u8, x + iota(16))


@function(f32, f32, 16, 16)
def halves(x, y, z):
    return join(high(x), low(y))


@function(f32, f32, 2, 2)
def halves_of_two(x, y, z):
    return join(high(x), low(y))


@function(f32, f32, 16, 1)
def sums(x, y, z):
    return reduce_add(x) + reduce_max(y) - reduce_min(z)


@function(i32, i32, 16, 1)
def sums_i32(x, y, z):
    return reduce_add(x) + reduce_max(y) - reduce_min(z)


@function(u8, i32, 64, 16)
def dots(x, y, z):
    return dot4(dot4(vec(3, 16), x, bitcast(i8, y)), z, bitcast(i8, x))


@function(u8, i32, 64, 16)
def dots_u7(x, y, z):
    return dot4_u7(iota(16), x & 127, bitcast(i8, y))


@function(u8, i32, 64, 16)
def dots_i8(x, y, z):
    return dot4_i8(iota(16), bitcast(i8, x), bitcast(i8, y | 1))


@function(f32, f32, 16, 16)
def scalar_choice(x, y, z):
    return select(reduce_add(x) < 0.0, x, y)


def data(dtype, count):
    """Random values with the corners of the dtype sprinkled in."""
    rng = np.random.default_rng(SEED)
    if dtype.kind == "float":
        values = rng.standard_normal((3, count)) * 10 ** rng.uniform(-3, 4, (3, count))
        values[:, ::7] = np.round(values[:, ::7]) + 0.5
        values[1, ::5] = values[0, ::5]
        values[:, ::11] = 0.0
        return values.astype(dtype.np)
    info = np.iinfo(dtype.np)
    values = rng.integers(info.min, info.max, (3, count), dtype.np, endpoint=True)
    values[:, ::7], values[1, ::5] = info.max, info.min
    return values


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name, same_bits, features):
    f, a, b, lanes, to = CASES[name]
    if (f16 in (a, b) or name == "half_precision") and "f16c" not in features:
        pytest.skip("halves need f16c, or library calls that no artifact has")
    count = 8 * lanes
    x, y, z = data(a, count)
    out = np.zeros(8 * to, b.np)
    same_bits(apply, [x, y, z, out], {"f": f, "a": a, "b": b, "lanes": lanes, "to": to})


def test_exact_fma_of_hard_cases(same_bits):
    rng = np.random.default_rng(SEED)
    bits = rng.integers(0, 1 << 32, (3, 4096), np.uint32)
    x, y, z = bits.view(np.float32)
    # results near a rounding boundary: z cancels or barely moves the product
    with np.errstate(all="ignore"):
        z[::2] = -(x[::2] * y[::2]) * (1 + rng.integers(-3, 4, 2048) * 2.0**-24)
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    x, y, z = (np.where(finite, v, np.float32(1)).astype(np.float32) for v in (x, y, z))
    out = np.zeros(4096, np.float32)
    constants = {"f": CASES["fused"][0], "a": f32, "b": f32, "lanes": 16, "to": 16}
    same_bits(apply, [x, y, z, out], constants)


def test_every_intrinsic_has_a_meaning_and_a_lowering():
    operators = {name for name, _ in (*ARITHMETIC.values(), *COMPARISON.values())}
    built = {row.name for row in INTRINSICS.values() if row.build} - {"index", "ceildiv"}
    assert set(LOWERINGS) == built | operators | {"neg", "not"}
    assert all(row.body.__doc__ for row in INTRINSICS.values())
