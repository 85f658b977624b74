"""Matrix products with integer weights, against int8 or float activations.

Integer dots are exact and groups are summed in order, so the bits of an output do not depend on the
tile, the batch or the instruction set.
"""

from __future__ import annotations

from ondevice.kernels.activations import group_offset, group_total, group_unit, quad
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
    cast,
    ceildiv,
    dot4,
    dot4_u7,
    dot_tile,
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
def start_dots(
    dots, x: u8[T, G, LINES, BYTES], t, g, part, *, zero: int, tile: int, tokens: int, blocks: int
):
    """dots = -zero * sum(x): the weights' codes stand `zero` above what they mean"""
    for m in unroll(tokens):
        offset = group_offset(x, t, g, part * tokens + m, zero=zero, tile=tile)
        for r in unroll(blocks):
            dots[m, r] = offset


@inline
def add_dots(
    dots,
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    t,
    b,
    g,
    part,
    at,
    *,
    bits: int,
    tokens: int,
    blocks: int,
):
    """dots += codes . activations of one group"""
    for j in unroll(bits):
        codes = registers(vec(cast(u8, 0), 64), blocks)
        for r in unroll(blocks):
            codes[r] = load(w, min(b + r, NB - 1), at + j * 64, lanes=64)
        for m in unroll(tokens):
            if bits == 4:
                first = quad(x, t, g, part, m, j * 4, tokens=tokens)
                second = quad(x, t, g, part, m, j * 4 + 16, tokens=tokens)
                for r in unroll(blocks):
                    dots[m, r] = dot4_u7(dots[m, r], codes[r] & 15, first)
                    dots[m, r] = dot4_u7(dots[m, r], codes[r] >> 4, second)
            else:
                four = quad(x, t, g, part, m, j * 4, tokens=tokens)
                for r in unroll(blocks):
                    dots[m, r] = dot4(dots[m, r], codes[r], four)


@inline
def add_scaled(
    acc,
    dots,
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    t,
    b,
    g,
    part,
    tail,
    *,
    affine: bool,
    tile: int,
    tokens: int,
    blocks: int,
):
    """acc += scales * dots, in float32"""
    for r in unroll(blocks):
        scale = group_scale(w, min(b + r, NB - 1), tail, affine=affine)
        for m in unroll(tokens):
            unit = group_unit(x, t, g, part * tokens + m, tile=tile)
            acc[m, r] = fma(cast(f32, dots[m, r]), scale * vec(unit, 16), acc[m, r])


@inline
def add_minima(
    least,
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    t,
    b,
    g,
    part,
    tail,
    *,
    tile: int,
    tokens: int,
    blocks: int,
):
    """least += minima * sum(x), in float32"""
    for r in unroll(blocks):
        minimum = group_minimum(w, min(b + r, NB - 1), tail)
        for m in unroll(tokens):
            total = group_total(x, t, g, part * tokens + m, tile=tile)
            least[m, r] = fma(minimum, vec(total, 16), least[m, r])


@inline
def add_groups(
    acc,
    least,
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    t,
    b,
    part,
    *,
    bits: int,
    zero: int,
    affine: bool,
    tile: int,
    tokens: int,
    blocks: int,
    apart: bool,
):
    """acc and least += all groups of `tokens` rows and `blocks` blocks of weights

    The minima of affine weights are summed by themselves; `apart`, in a loop of their own.
    """
    for pair in range(0, G, 2):
        for half in unroll(2):
            g = pair + half
            at = codes_at(g, bits=bits, affine=affine)
            tail = scales_at(g, bits=bits, affine=affine)
            dots = registers(vec(cast(i32, 0), 16), tokens, blocks)
            if zero != 0:
                start_dots(dots, x, t, g, part, zero=zero, tile=tile, tokens=tokens, blocks=blocks)
            add_dots(dots, x, w, t, b, g, part, at, bits=bits, tokens=tokens, blocks=blocks)
            add_scaled(
                acc, dots, x, w, t, b, g, part, tail,
                affine=affine, tile=tile, tokens=tokens, blocks=blocks,
            )  # fmt: skip
            if affine and not apart:
                add_minima(
                    least, x, w, t, b, g, part, tail, tile=tile, tokens=tokens, blocks=blocks
                )
    if affine and apart:
        for g in range(G):
            tail = scales_at(g, bits=bits, affine=affine)
            add_minima(least, x, w, t, b, g, part, tail, tile=tile, tokens=tokens, blocks=blocks)


@inline
def unpack_codes(codes, w: u8[NB, ROW], b, first, *, affine: bool, depth: int):
    """The codes of `depth` groups of 4 bits, a byte each, as a matrix unit wants them"""
    for i in unroll(depth):
        at = codes_at(first + i, bits=4, affine=affine)
        for j in unroll(4):
            both = load(w, b, at + j * 64, lanes=64)
            store(codes, i, j, 0, both & 15)
            store(codes, i, j + 4, 0, both >> 4)


@inline
def add_tile(
    acc,
    products,
    place,
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    t,
    b,
    g,
    tail,
    *,
    zero: int,
    affine: bool,
):
    """acc += scales * products of 16 rows of x, in float32"""
    scale = group_scale(w, b, tail, affine=affine)
    for m in unroll(16):
        dots = load(products, place, m, 0, lanes=16)
        if zero != 0:
            dots = dots + group_offset(x, t, g, m, zero=zero, tile=16)
        unit = group_unit(x, t, g, m, tile=16)
        acc[m, 0] = fma(cast(f32, dots), scale * vec(unit, 16), acc[m, 0])


@inline
def in_row_units(acc, least, w, block, *, affine: bool):
    """f32[16]: the sums of a row in units of its scale and minimum, put together"""
    value = acc * row_scale(w, block)
    if affine:
        value = fma(least, -row_minimum(w, block), value)
    return value


@kernel
def matmul_int(
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    y: f32[S, N],
    *,
    epilogue: Inline,
    bits: int,
    zero: int,
    affine: bool,
    tile: int,
    strip: int,
    tokens: int,
    blocks: int,
    apart: bool,
):
    """y[s, n] = epilogue(sum_k x[s, k] * w[n, k]) with x int8 in groups of 32 (quantize_rows)

    A task takes a tile of rows and a strip of blocks of weights, `tokens` by `blocks` at a time.
    """
    for strip_, t in parallel(ceildiv(NB, strip * blocks), T):
        for part in range(tile // tokens):
            if t * tile + part * tokens < S:
                for row in range(strip):
                    b = (strip_ * strip + row) * blocks
                    acc = registers(vec(0.0, 16), tokens, blocks)
                    least = registers(vec(0.0, 16), tokens, blocks)
                    add_groups(
                        acc, least, x, w, t, b, part, bits=bits, zero=zero, affine=affine,
                        tile=tile, tokens=tokens, blocks=blocks, apart=apart,
                    )  # fmt: skip
                    for m in unroll(tokens):
                        for r in unroll(blocks):
                            s = t * tile + part * tokens + m
                            n = (b + r) * 16
                            if s < S and n < N:
                                value = in_row_units(
                                    acc[m, r], least[m, r], w, b + r, affine=affine
                                )
                                store(y, s, n, epilogue(value, s, n, N - n), count=N - n)


@kernel
def matmul_int_tile(
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    y: f32[S, N],
    *,
    epilogue: Inline,
    bits: int,
    zero: int,
    affine: bool,
    strip: int,
    depth: int,
):
    """matmul_int on a matrix unit: 16 rows by one block of weights at a time, the same bits

    Between this unit and the vector unit goes memory, and who reads at once what the other wrote
    waits for it: so each takes `depth` groups in turn.
    """
    products = scratch(i32, depth, 16, 16)
    if bits == 4:
        codes = scratch(u8, depth, 8, 64)
    for strip_, t in parallel(ceildiv(NB, strip), T):
        for row in range(strip):
            b = strip_ * strip + row
            if b < NB:
                acc = registers(vec(0.0, 16), 16, 1)
                least = registers(vec(0.0, 16), 16, 1)
                for first in range(0, G, depth):
                    if bits == 4:
                        unpack_codes(codes, w, b, first, affine=affine, depth=depth)
                    for i in unroll(depth):
                        at = codes_at(first + i, bits=bits, affine=affine)
                        if bits == 4:
                            dot_tile(products, i, x, t, first + i, 0, 0, codes, i, 0, 0)
                        else:
                            dot_tile(products, i, x, t, first + i, 0, 0, w, b, at)
                    for i in unroll(depth):
                        tail = scales_at(first + i, bits=bits, affine=affine)
                        add_tile(
                            acc, products, i, x, w, t, b, first + i, tail, zero=zero, affine=affine
                        )
                if affine:
                    for g in range(G):
                        tail = scales_at(g, bits=bits, affine=affine)
                        add_minima(least, x, w, t, b, g, 0, tail, tile=16, tokens=16, blocks=1)
                for m in unroll(16):
                    s = t * 16 + m
                    n = b * 16
                    if s < S:
                        value = in_row_units(acc[m, 0], least[m, 0], w, b, affine=affine)
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
def float_total(rows, m, g):
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
                        total = vec(float_total(rows, m, g), 16)
                        least[m, r] = fma(group_minimum(w, block, tail), total, least[m, r])
        for m in unroll(tokens):
            for r in unroll(blocks):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    value = in_row_units(acc[m, r], least[m, r], w, b * blocks + r, affine=affine)
                    store(y, s, n, epilogue(value, s, n, N - n), count=N - n)
