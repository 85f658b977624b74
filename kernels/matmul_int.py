"""Matrix products with weights in groups of 32 integers, against int8 or float activations.

A block of 16 rows is one stream of bytes (see quant/layout.py): float32 row scales (and row minima,
if affine), then for each group its codes, four consecutive k of a row side by side, its 16 scales
and, if affine, its 16 minima. Integer dots are exact and groups are summed in order, so the bits do
not depend on the tile, the batch or the instruction set.
"""
# mypy: ignore-errors

from __future__ import annotations

from ondevice.lang import (
    Inline,
    bitcast,
    cast,
    ceildiv,
    dot4,
    dot4_u7,
    f16,
    f32,
    fma,
    i8,
    i32,
    index,
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
def group_scale(w, b, at, *, affine: bool):
    """f32[16]: the group's scale of each row, relative to the row's scale"""
    if affine:
        scale = cast(f32, cast(i32, load(w, b, at, lanes=16)))
    else:
        scale = cast(f32, load(w, b, at, lanes=16, as_=f16))
    return scale


@inline
def row_scale(w, b):
    """f32[16]: the scale of each row"""
    return load(w, b, 0, lanes=16, as_=f32)


@inline
def row_minimum(w, b):
    """f32[16]: the unit of each row's group minima"""
    return load(w, b, 64, lanes=16, as_=f32)


@inline
def repeated(x, s, g, quad):
    """i8[64]: four neighbouring activations, 16 times"""
    return bitcast(i8, vec(load(x, s, g, quad * 4, lanes=1, as_=i32), 16))


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
    """y[s, n] = epilogue(sum_k x[s, k] * w[n, k]) with x int8 in groups of 32 (see quantize_rows)

    `zero` is the code of the weight 0. The dots of a group start at -zero * sum(x), which is as
    cheap as starting at 0; minima cost one multiply-add per group, by sum(x).
    """
    for t, b in parallel(ceildiv(S, tokens), ceildiv(NB, blocks)):
        acc = registers(vec(0.0, 16), tokens, blocks)
        low_part = registers(vec(0.0, 16), tokens, blocks)
        for g in range(G):
            at = (128 if affine else 64) + g * (64 * bits + 32)
            dots = registers(vec(cast(i32, 0), 16), tokens, blocks)
            if zero != 0:
                for m in unroll(tokens):
                    offset = load(x, min(t * tokens + m, S - 1), g, 36, lanes=1, as_=i32) * -zero
                    for r in unroll(blocks):
                        dots[m, r] = vec(offset, 16)
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
            for r in unroll(blocks):
                block = min(b * blocks + r, NB - 1)
                scale = group_scale(w, block, at + 64 * bits, affine=affine)
                for m in unroll(tokens):
                    s = min(t * tokens + m, S - 1)
                    unit = load(x, s, g, 32, lanes=1, as_=f32)
                    acc[m, r] = fma(cast(f32, dots[m, r]), scale * vec(unit, 16), acc[m, r])
                if affine:
                    least = cast(f32, cast(i32, load(w, block, at + 64 * bits + 16, lanes=16)))
                    for m in unroll(tokens):
                        s = min(t * tokens + m, S - 1)
                        total = cast(f32, load(x, s, g, 36, lanes=1, as_=i32))
                        unit = load(x, s, g, 32, lanes=1, as_=f32)
                        low_part[m, r] = fma(least, vec(unit * total, 16), low_part[m, r])
        for m in unroll(tokens):
            for r in unroll(blocks):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    value = acc[m, r] * row_scale(w, b * blocks + r)
                    if affine:
                        value = fma(low_part[m, r], -row_minimum(w, b * blocks + r), value)
                    store(y, s, n, epilogue(value, s, n, N - n), count=N - n)


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

    Codes become floats in registers; a group's products are summed before its scale is applied.
    """
    rows = scratch(f32, tokens, ceildiv(K, 32) * 32)
    for t, b in parallel(ceildiv(S, tokens), ceildiv(NB, blocks)):
        for m in unroll(tokens):
            s = min(t * tokens + m, S - 1)
            for k in range(0, ceildiv(K, 32) * 32, 16):
                value = load(x, s, k, lanes=16, count=K - k) if k < K else vec(0.0, 16)
                if staged:
                    value = prologue(value, s, k, K - k)
                store(rows, m, k, value)
        acc = registers(vec(0.0, 16), tokens, blocks)
        low_part = registers(vec(0.0, 16), tokens, blocks)
        for g in range(ceildiv(K, 32)):
            at = (128 if affine else 64) + g * (64 * bits + 32)
            for r in unroll(blocks):
                block = min(b * blocks + r, NB - 1)
                sums = registers(vec(0.0, 16), tokens)
                for j in range(bits):
                    quads = load(w, block, at + j * 64, lanes=16, as_=i32)
                    for i in unroll(4):
                        for half in unroll(8 // bits):
                            code = (quads >> (8 * i + 4 * half)) & (15 if bits == 4 else 255)
                            value = cast(f32, code - zero)
                            for m in unroll(tokens):
                                unit = rows[m, g * 32 + half * 16 + j * 4 + i]
                                sums[m] = fma(vec(unit, 16), value, sums[m])
                scale = group_scale(w, block, at + 64 * bits, affine=affine)
                for m in unroll(tokens):
                    acc[m, r] = fma(sums[m], scale, acc[m, r])
                if affine:
                    least = cast(f32, cast(i32, load(w, block, at + 64 * bits + 16, lanes=16)))
                    for m in unroll(tokens):
                        total = cast(f32, 0.0)
                        for k in range(32):
                            total = total + rows[m, g * 32 + k]
                        low_part[m, r] = fma(least, vec(total, 16), low_part[m, r])
        for m in unroll(tokens):
            for r in unroll(blocks):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    value = acc[m, r] * row_scale(w, b * blocks + r)
                    if affine:
                        value = fma(low_part[m, r], -row_minimum(w, b * blocks + r), value)
                    store(y, s, n, epilogue(value, s, n, N - n), count=N - n)


@kernel
def embed_int(
    tokens: i32[S], table: u8[NB, ROW], y: f32[S, K], *, bits: int, zero: int, affine: bool
):
    """y[s, k] = table[tokens[s], k]"""
    for s in parallel(S):
        token = index(tokens[s])
        b = token // 16
        row = token % 16
        unit = load(table, b, row * 4, lanes=1, as_=f32)
        floor = load(table, b, 64 + row * 4, lanes=1, as_=f32) if affine else cast(f32, 0.0)
        for g in range(ceildiv(K, 32)):
            at = (128 if affine else 64) + g * (64 * bits + 32)
            tail = at + 64 * bits
            if affine:
                scale = unit * cast(f32, cast(i32, table[b, tail + row]))
                least = floor * cast(f32, cast(i32, table[b, tail + 16 + row]))
            else:
                scale = unit * cast(f32, load(table, b, tail + row * 2, lanes=1, as_=f16))
                least = cast(f32, 0.0)
            for k in range(min(32, K - g * 32)):
                if bits == 4:
                    code = cast(i32, table[b, at + k % 16 // 4 * 64 + row * 4 + k % 4])
                    code = (code >> cast(i32, k // 16 * 4)) & 15
                else:
                    code = cast(i32, table[b, at + k // 4 * 64 + row * 4 + k % 4])
                y[s, g * 32 + k] = fma(cast(f32, code - zero), scale, -least)
