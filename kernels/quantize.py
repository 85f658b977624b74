"""Floats to groups of 32 integers: activations while a step runs, weights while a bundle is built.

The packers work on 16 rows at a time, one lane a row, over a transposed copy in worker scratch.
"""

from __future__ import annotations

from ondevice.kernels.activations import store_numbers
from ondevice.kernels.groups import codes_at, scales_at
from ondevice.lang import (
    Inline,
    bitcast,
    cast,
    ceildiv,
    f16,
    f32,
    fma,
    i8,
    i32,
    inline,
    kernel,
    load,
    parallel,
    reduce_add,
    reduce_max,
    registers,
    scratch,
    select,
    store,
    u8,
    unroll,
    vec,
)


@kernel
def quantize_rows(
    x: f32[S, K], y: u8[T, G, LINES, BYTES], *, prologue: Inline, staged: bool, tile: int
):
    """A group of 32: its int8 codes, the float32 scale max|x| / 127 and sums of its codes

    Rows that fill up the last tile get scales of 0.
    """
    for s in parallel(T * tile):
        t = s // tile
        m = s % tile
        for g in range(G):
            if s < S:
                values = registers(vec(0.0, 16), 2)
                for h in unroll(2):
                    k = g * 32 + h * 16
                    if k < K:
                        value = load(x, s, k, lanes=16, count=K - k)
                        if staged:
                            value = prologue(value, s, k, K - k)
                        values[h] = value
                top = reduce_max(max(abs(values[0]), abs(values[1])))
                inverse = 127.0 / top if top > 1e-30 else cast(f32, 0.0)
                first = cast(i32, round(values[0] * vec(inverse, 16)))
                second = cast(i32, round(values[1] * vec(inverse, 16)))
                store(y, t, g, m // 2, m % 2 * 32, bitcast(u8, cast(i8, first)))
                store(y, t, g, m // 2, m % 2 * 32 + 16, bitcast(u8, cast(i8, second)))
                store_numbers(y, t, g, m, top / 127.0, reduce_add(first + second), tile=tile)
            else:
                store_numbers(y, t, g, m, cast(f32, 0.0), cast(i32, 0), tile=tile)


@inline
def transpose_block(xt, x: f32[N, K], b):
    """xt[k, r] = x[16 * b + r, k], zero outside of x"""
    for tile in range(0, ceildiv(K, 64) * 64, 16):  # reads and writes stay within a few lines
        for r in range(16):
            n = b * 16 + r
            if n < N and tile + 16 <= K:
                for i in unroll(16):
                    xt[tile + i, r] = x[n, tile + i]
            else:
                for k in range(tile, tile + 16):
                    if n < N and k < K:
                        xt[k, r] = x[n, k]
                    else:
                        xt[k, r] = cast(f32, 0.0)


@inline
def inverse_of(value):
    """1 / value, and 0 for 0"""
    return select(value != 0.0, 1.0 / value, vec(0.0, 16))


@inline
def word(first, second, third, fourth):
    """i32[16]: four byte codes of each row side by side"""
    return first | (second << 8) | (third << 16) | (fourth << 24)


@inline
def rounded(value, *, least: float, most: float):
    """The nearest whole number within [least, most]"""
    return max(min(round(value), most), least)


@inline
def store_codes(w, b, at, xt, k, shift, inverse, *, bits: int, zero: int):
    """Codes round((x + shift) * inverse) + zero of a group of 32, four k of a row in a word"""
    codes = registers(vec(cast(i32, 0), 16), 8)
    for j in unroll(bits):
        for h in unroll(8 // bits):
            for i in unroll(4):
                value = load(xt, k + h * 16 + j * 4 + i, 0, lanes=16)
                most = (1 << bits) - 1.0 - zero
                code = rounded((value + shift) * inverse, least=-1.0 * zero, most=most)
                codes[h * 4 + i] = cast(i32, code) + zero
        packed = word(codes[0], codes[1], codes[2], codes[3])
        if bits == 4:
            packed = packed | (word(codes[4], codes[5], codes[6], codes[7]) << 4)
        store(w, b, at + j * 64, bitcast(u8, packed))


@inline
def try_affine(fit, xt, k, count, bounds, levels):
    """Improve fit = (error, scale, minimum) by codes for steps of range / levels.

    `bounds` are (least, most, sum) of the group. For the codes, scale and minimum are solved by
    least squares, the minimum kept at or below 0.
    """
    number = vec(cast(f32, cast(i32, count)), 16)
    inverse = inverse_of((bounds[1] - bounds[0]) / vec(levels, 16))
    q1 = vec(0.0, 16)
    q2 = vec(0.0, 16)
    xq = vec(0.0, 16)
    for i in range(count):
        value = load(xt, k + i, 0, lanes=16)
        code = rounded((value - bounds[0]) * inverse, least=0.0, most=15.0)
        q1 = q1 + code
        q2 = fma(code, code, q2)
        xq = fma(value, code, xq)
    spread = number * q2 - q1 * q1
    scale = select(spread > 0.0, (number * xq - bounds[2] * q1) / spread, vec(0.0, 16))
    minimum = (scale * q1 - bounds[2]) / number
    scale = select(minimum < 0.0, xq * inverse_of(q2), scale)
    minimum = max(minimum, 0.0)
    # The squared error without the sum of x * x, which all candidates share.
    error = scale * (scale * q2 - 2.0 * xq - 2.0 * minimum * q1)
    error = error + minimum * (number * minimum + 2.0 * bounds[2])
    better = select(scale > 0.0, error, vec(cast(f32, 1e30), 16)) < fit[0]
    fit[0] = select(better, error, fit[0])
    fit[1] = select(better, scale, fit[1])
    fit[2] = select(better, minimum, fit[2])


@inline
def fit_affine(fit, xt, k, count, *, steps: int):
    """fit = (error, scale, minimum) of a group with the least squared error among `steps` tries"""
    bounds = registers(vec(0.0, 16), 3)
    for i in range(count):
        value = load(xt, k + i, 0, lanes=16)
        bounds[0] = min(bounds[0], value)
        bounds[1] = max(bounds[1], value)
        bounds[2] = bounds[2] + value
    # Round to nearest where no try has a solution, as in a group of equal elements.
    fit[0] = vec(cast(f32, 1e30), 16)
    fit[1] = (bounds[1] - bounds[0]) / 15.0
    fit[2] = -bounds[0]
    for c in range(steps):
        try_affine(fit, xt, k, count, bounds, 13.75 + cast(f32, cast(i32, c)) * 0.25)


@kernel
def pack_affine(x: f32[N, K], w: u8[NB, ROW], *, steps: int):
    """x[n, k] ~ scale * code - minimum with 4-bit codes, in the layout of quant/layout.py

    Scales and minima of the groups are rounded to 8 bits against the row's largest.
    """
    xt = scratch(f32, ceildiv(K, 64) * 64, 16)
    fits = scratch(f32, ceildiv(K, 64) * 2, 2, 16)
    for b in parallel(NB):
        transpose_block(xt, x, b)
        row_scale = vec(0.0, 16)
        row_minimum = vec(0.0, 16)
        for g in range(ceildiv(K, 64) * 2):
            fit = registers(vec(0.0, 16), 3)
            fit_affine(fit, xt, g * 32, max(min(32, K - g * 32), 1), steps=steps)
            store(fits, g, 0, 0, fit[1])
            store(fits, g, 1, 0, fit[2])
            row_scale = max(row_scale, fit[1] / 255.0)
            row_minimum = max(row_minimum, fit[2] / 255.0)
        store(w, b, 0, row_scale)
        store(w, b, 64, row_minimum)
        for g in range(ceildiv(K, 64) * 2):
            tail = scales_at(g, bits=4, affine=True)
            scale = load(fits, g, 0, 0, lanes=16) * inverse_of(row_scale)
            scale = rounded(scale, least=0.0, most=255.0)
            minimum = load(fits, g, 1, 0, lanes=16) * inverse_of(row_minimum)
            minimum = rounded(minimum, least=0.0, most=255.0)
            store(w, b, tail, cast(u8, cast(i32, scale)))
            store(w, b, tail + 16, cast(u8, cast(i32, minimum)))
            at = codes_at(g, bits=4, affine=True)
            inverse = inverse_of(scale * row_scale)
            store_codes(w, b, at, xt, g * 32, minimum * row_minimum, inverse, bits=4, zero=0)


@inline
def fit_symmetric(xt, k, *, zero: int, steps: int):
    """f32[16]: the scale of a group with the least squared error among `steps` tries.

    The element of largest magnitude goes to the negative end, which reaches one further; tries
    range from half a step short of that end to well behind it, where outliers are cut. For the
    codes of each try the scale is solved by least squares.
    """
    extreme = vec(0.0, 16)
    for i in range(32):
        value = load(xt, k + i, 0, lanes=16)
        extreme = select(abs(value) > abs(extreme), value, extreme)
    best = vec(0.0, 16)
    best_scale = vec(0.0, 16)
    for c in range(steps):
        end = cast(f32, zero) * (0.94 + cast(f32, cast(i32, c)) * 0.02)
        inverse = vec(-end, 16) * inverse_of(extreme)
        q2 = vec(0.0, 16)
        xq = vec(0.0, 16)
        for i in range(32):
            value = load(xt, k + i, 0, lanes=16)
            code = rounded(value * inverse, least=-1.0 * zero, most=zero - 1.0)
            q2 = fma(code, code, q2)
            xq = fma(value, code, xq)
        scale = xq * inverse_of(q2)
        gain = scale * xq  # what this takes from the sum of x * x
        better = gain > best
        best = select(better, gain, best)
        best_scale = select(better, scale, best_scale)
    return best_scale


@kernel
def pack_symmetric(x: f32[N, K], w: u8[NB, ROW], *, bits: int, steps: int):
    """x[n, k] ~ scale * (code - 2^(bits - 1)), in the layout of quant/layout.py

    Scales of the groups are float16 against the row's largest.
    """
    zero = 1 << (bits - 1)
    xt = scratch(f32, ceildiv(K, 64) * 64, 16)
    scales = scratch(f32, ceildiv(K, 64) * 2, 16)
    for b in parallel(NB):
        transpose_block(xt, x, b)
        row_scale = vec(0.0, 16)
        for g in range(ceildiv(K, 64) * 2):
            scale = fit_symmetric(xt, g * 32, zero=zero, steps=steps)
            store(scales, g, 0, scale)
            row_scale = max(row_scale, abs(scale))
        store(w, b, 0, row_scale)
        for g in range(ceildiv(K, 64) * 2):
            half = cast(f16, load(scales, g, 0, lanes=16) * inverse_of(row_scale))
            store(w, b, scales_at(g, bits=bits, affine=False), half)
            at = codes_at(g, bits=bits, affine=False)
            inverse = inverse_of(cast(f32, half) * row_scale)
            store_codes(w, b, at, xt, g * 32, vec(0.0, 16), inverse, bits=bits, zero=zero)
