"""Matrix products with integer weights, against int8 or float activations.

Integer dots are exact and groups are summed in order, so the bits of an output do not depend on the
tile, the batch or the instruction set.
"""

from __future__ import annotations

from ondevice.kernels.groups import (
    codes_at,
    group_minimum,
    group_scale,
    row_minimum,
    row_scale,
    scales_at,
)
from ondevice.lang import (
    Inline,
    bitcast,
    cast,
    ceildiv,
    dot4,
    dot4_u7,
    f32,
    fma,
    i8,
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
def repeated(x, s, g, quad):
    """i8[64]: four neighbouring activations, 16 times"""
    return bitcast(i8, vec(load(x, s, g, quad * 4, lanes=1, as_=i32), 16))


@inline
def activation_scale(x, s, g):
    """The float32 scale of a group of int8 activations"""
    return load(x, s, g, 32, lanes=1, as_=f32)


@inline
def activation_sum(x, s, g):
    """The int32 sum of a group's int8 activations"""
    return load(x, s, g, 36, lanes=1, as_=i32)


@inline
def start_dots(dots, x: u8[S, G, 40], t, g, *, zero: int, tokens: int, blocks: int):
    """dots = -zero * sum(x): the weights' codes stand `zero` above what they mean"""
    for m in unroll(tokens):
        offset = activation_sum(x, min(t * tokens + m, S - 1), g) * -zero
        for r in unroll(blocks):
            dots[m, r] = vec(offset, 16)


@inline
def add_dots(
    dots, x: u8[S, G, 40], w: u8[NB, ROW], t, b, g, at, *, bits: int, tokens: int, blocks: int
):
    """dots += codes . activations of one group"""
    for j in unroll(bits):
        codes = registers(vec(cast(u8, 0), 64), blocks)
        for r in unroll(blocks):
            codes[r] = load(w, min(b * blocks + r, NB - 1), at + j * 64, lanes=64)
        for m in unroll(tokens):
            s = min(t * tokens + m, S - 1)
            if bits == 4:
                first = repeated(x, s, g, j)
                second = repeated(x, s, g, j + 4)
                for r in unroll(blocks):
                    dots[m, r] = dot4_u7(dots[m, r], codes[r] & 15, first)
                    dots[m, r] = dot4_u7(dots[m, r], codes[r] >> 4, second)
            else:
                quad = repeated(x, s, g, j)
                for r in unroll(blocks):
                    dots[m, r] = dot4(dots[m, r], codes[r], quad)


@inline
def add_scaled(
    acc,
    least,
    dots,
    x: u8[S, G, 40],
    w: u8[NB, ROW],
    t,
    b,
    g,
    tail,
    *,
    affine: bool,
    tokens: int,
    blocks: int,
):
    """acc += scales * dots, and least += minima * sum(x), in float32"""
    for r in unroll(blocks):
        block = min(b * blocks + r, NB - 1)
        scale = group_scale(w, block, tail, affine=affine)
        for m in unroll(tokens):
            unit = activation_scale(x, min(t * tokens + m, S - 1), g)
            acc[m, r] = fma(cast(f32, dots[m, r]), scale * vec(unit, 16), acc[m, r])
        if affine:
            minimum = group_minimum(w, block, tail)
            for m in unroll(tokens):
                s = min(t * tokens + m, S - 1)
                total = activation_scale(x, s, g) * cast(f32, activation_sum(x, s, g))
                least[m, r] = fma(minimum, vec(total, 16), least[m, r])


@inline
def in_row_units(acc, least, w, block, *, affine: bool):
    """f32[16]: the sums of a row in units of its scale and minimum, put together"""
    value = acc * row_scale(w, block)
    if affine:
        value = fma(least, -row_minimum(w, block), value)
    return value


@kernel
def matmul_int(
    x: u8[S, G, 40],
    w: u8[NB, ROW],
    y: f32[S, N],
    *,
    epilogue: Inline,
    bits: int,
    zero: int,
    affine: bool,
    tokens: int,
    blocks: int,
):
    """y[s, n] = epilogue(sum_k x[s, k] * w[n, k]) with x int8 in groups of 32 (quantize_rows)"""
    for b, t in parallel(ceildiv(NB, blocks), ceildiv(S, tokens)):
        acc = registers(vec(0.0, 16), tokens, blocks)
        least = registers(vec(0.0, 16), tokens, blocks)
        for pair in range(0, G, 2):
            for half in unroll(2):
                g = pair + half
                at = codes_at(g, bits=bits, affine=affine)
                tail = scales_at(g, bits=bits, affine=affine)
                dots = registers(vec(cast(i32, 0), 16), tokens, blocks)
                if zero != 0:
                    start_dots(dots, x, t, g, zero=zero, tokens=tokens, blocks=blocks)
                add_dots(dots, x, w, t, b, g, at, bits=bits, tokens=tokens, blocks=blocks)
                add_scaled(
                    acc, least, dots, x, w, t, b, g, tail,
                    affine=affine, tokens=tokens, blocks=blocks,
                )  # fmt: skip
        for m in unroll(tokens):
            for r in unroll(blocks):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    value = in_row_units(acc[m, r], least[m, r], w, b * blocks + r, affine=affine)
                    store(y, s, n, epilogue(value, s, n, N - n), count=N - n)


@inline
def add_products(sums, rows, w, block, g, at, *, bits: int, zero: int, tokens: int):
    """sums += (codes - zero) * x of one group, the codes made floats in registers"""
    for j in range(bits):
        quads = load(w, block, at + j * 64, lanes=16, as_=i32)
        for i in unroll(4):
            for half in unroll(8 // bits):
                code = (quads >> (8 * i + 4 * half)) & (15 if bits == 4 else 255)
                value = cast(f32, code - zero)
                for m in unroll(tokens):
                    unit = rows[m, g * 32 + half * 16 + j * 4 + i]
                    sums[m] = fma(vec(unit, 16), value, sums[m])


@inline
def group_total(rows, m, g):
    """The sum of a group of float activations, in order"""
    total = cast(f32, 0.0)
    for k in range(32):
        total = total + rows[m, g * 32 + k]
    return total


@kernel
def matmul_dequant(
    x: f32[S, K],
    w: u8[NB, ROW],
    y: f32[S, N],
    *,
    prologue: Inline,
    epilogue: Inline,
    staged: bool,
    bits: int,
    zero: int,
    affine: bool,
    tokens: int,
    blocks: int,
):
    """y[s, n] = epilogue(sum_k prologue(x[s, k]) * w[n, k]) with float activations

    A group's products are summed before its scale is applied.
    """
    rows = scratch(f32, tokens, ceildiv(K, 32) * 32)
    for b, t in parallel(ceildiv(NB, blocks), ceildiv(S, tokens)):
        for m in unroll(tokens):
            s = min(t * tokens + m, S - 1)
            for k in range(0, ceildiv(K, 32) * 32, 16):
                value = load(x, s, k, lanes=16, count=K - k) if k < K else vec(0.0, 16)
                if staged:
                    value = prologue(value, s, k, K - k)
                store(rows, m, k, value)
        acc = registers(vec(0.0, 16), tokens, blocks)
        least = registers(vec(0.0, 16), tokens, blocks)
        for g in range(ceildiv(K, 32)):
            at = codes_at(g, bits=bits, affine=affine)
            tail = scales_at(g, bits=bits, affine=affine)
            for r in unroll(blocks):
                block = min(b * blocks + r, NB - 1)
                sums = registers(vec(0.0, 16), tokens)
                add_products(sums, rows, w, block, g, at, bits=bits, zero=zero, tokens=tokens)
                scale = group_scale(w, block, tail, affine=affine)
                for m in unroll(tokens):
                    acc[m, r] = fma(sums[m], scale, acc[m, r])
                    if affine:
                        total = vec(group_total(rows, m, g), 16)
                        least[m, r] = fma(group_minimum(w, block, tail), total, least[m, r])
        for m in unroll(tokens):
            for r in unroll(blocks):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    value = in_row_units(acc[m, r], least[m, r], w, b * blocks + r, affine=affine)
                    store(y, s, n, epilogue(value, s, n, N - n), count=N - n)
