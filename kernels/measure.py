"""How far packed weights are from the floats they were packed from."""

from __future__ import annotations

from ondevice.kernels.groups import (
    codes_at,
    group_minimum,
    group_scale,
    row_minimum,
    row_scale,
    scales_at,
)
from ondevice.kernels.quantize import transpose_block
from ondevice.lang import (
    DType,
    cast,
    ceildiv,
    f32,
    fma,
    i32,
    inline,
    kernel,
    load,
    parallel,
    registers,
    scratch,
    store,
    u8,
    unroll,
    vec,
)


@inline
def add_squares(sums, original, value):
    """sums += squares of what 16 elements lost, and of what they were"""
    lost = original - value
    sums[0] = fma(lost, lost, sums[0])
    sums[1] = fma(original, original, sums[1])


@kernel
def measure_rounding(x: f32[N, K], squares: f32[N, 2, 16], *, W: DType):
    """squares[n] = sums along k, 16 apart, of (x - x as W)^2 and of x^2"""
    for n in parallel(N):
        sums = registers(vec(0.0, 16), 2)
        for k in range(0, K, 16):
            value = load(x, n, k, lanes=16, count=K - k)
            add_squares(sums, value, cast(f32, cast(W, value)))
        store(squares, n, 0, 0, sums[0])
        store(squares, n, 1, 0, sums[1])


@kernel
def measure_groups(
    x: f32[N, K], w: u8[NB, ROW], squares: f32[NB, 2, 16], *, bits: int, zero: int, affine: bool
):
    """squares[b] = sums along k of (x - unpacked w)^2 and of x^2, for each of the 16 rows"""
    xt = scratch(f32, ceildiv(K, 64) * 64, 16)
    for b in parallel(NB):
        transpose_block(xt, x, b)
        sums = registers(vec(0.0, 16), 2)
        for g in range(ceildiv(K, 32)):
            at = codes_at(g, bits=bits, affine=affine)
            tail = scales_at(g, bits=bits, affine=affine)
            scale = group_scale(w, b, tail, affine=affine) * row_scale(w, b)
            least = vec(0.0, 16)
            if affine:
                least = group_minimum(w, b, tail) * row_minimum(w, b)
            for j in range(bits):
                quads = load(w, b, at + j * 64, lanes=16, as_=i32)
                for i in unroll(4):
                    for half in unroll(8 // bits):
                        code = (quads >> (8 * i + 4 * half)) & (15 if bits == 4 else 255)
                        value = fma(cast(f32, code - zero), scale, -least)
                        k = g * 32 + half * 16 + j * 4 + i
                        if k < K:
                            add_squares(sums, load(xt, k, 0, lanes=16), value)
        store(squares, b, 0, 0, sums[0])
        store(squares, b, 1, 0, sums[1])
