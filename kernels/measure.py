"""How far packed weights are from the floats they were packed from."""

from __future__ import annotations

from ondevice.kernels.quantize import transpose_block
from ondevice.kernels.sections import codes_at, half_minimum, half_scale, row_units
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
def measure_sections(
    x: f32[N, K], w: u8[NB, ROW], squares: f32[NB, 2, 16], *, bits: int, minima: bool
):
    """squares[b] = sums along k of (x - unpacked w)^2 and of x^2, for each of the 16 rows"""
    xt = scratch(f32, ceildiv(K, 64) * 64, 16)
    for b in parallel(NB):
        transpose_block(xt, x, b)
        sums = registers(vec(0.0, 16), 2)
        for g in range(ceildiv(K, 64)):
            section = g // 4
            unit = row_units(w, b, section, bits=bits, minima=minima)
            for half in unroll(2):
                at = codes_at(section, g % 4, bits=bits, minima=minima) + half * (64 * bits)
                scale = vec(1.0, 16)
                minimum = vec(128.0, 16)
                if bits == 4:
                    scale = cast(f32, half_scale(w, b, section, g % 4, half, minima=minima))
                    minimum = cast(f32, half_minimum(w, b, section, g % 4, half, minima=minima))
                for j in range(bits):
                    quads = load(w, b, at + j * 64, lanes=16, as_=i32)
                    for i in unroll(4):
                        for nibble in unroll(8 // bits):
                            code = (quads >> (8 * i + 4 * nibble)) & (15 if bits == 4 else 255)
                            value = fma(cast(f32, code), scale, -minimum) * unit
                            k = g * 64 + half * 32 + nibble * 16 + j * 4 + i
                            if k < K:
                                add_squares(sums, load(xt, k, 0, lanes=16), value)
        store(squares, b, 0, 0, sums[0])
        store(squares, b, 1, 0, sums[1])
