"""Matrix products with integer weights, against int8 or float activations.

Within a group of 64 all is whole numbers, exact in int32 and in float32, whose order does not
matter; groups are summed in order. So the bits of an output do not depend on the tile, the batch,
the instruction set, or on where the scales of the weights come in: `matmul_int` applies them to
sums, for few rows, `matmul_plane` to the codes, once for many rows.
"""

from __future__ import annotations

from ondevice.kernels.activations import group_offset, group_unit, half_sum, quad
from ondevice.kernels.sections import (
    codes_at,
    half_base,
    half_minimum,
    half_scale,
    row_units,
    section_at,
)
from ondevice.lang import (
    Inline,
    bitcast,
    cast,
    ceildiv,
    dot4,
    dot4_i8,
    dot4_u7,
    dot_tile,
    f32,
    fma,
    i8,
    i16,
    i32,
    inline,
    kernel,
    load,
    parallel,
    prefetch,
    registers,
    scratch,
    store,
    u8,
    unroll,
    vec,
)


@inline
def groups_of(x: u8[T, G, LINES, BYTES]):
    """How many groups of 64 a row of activations has"""
    return G


@inline
def last_block(w: u8[NB, ROW]):
    """The number of the last block of 16 rows of weights"""
    return NB - 1


@inline
def scaled_floats(dots, scale, base, total, before, *, minima: bool):
    """f32[16]: `before` and the sum of half a group, scale and base applied to its `dots`"""
    dot = cast(f32, dots)
    by = cast(f32, scale)
    below = -cast(f32, base)
    if minima:
        after = fma(below, vec(total, 16), fma(dot, by, before))
    else:
        after = fma(fma(below, vec(total, 16), dot), by, before)
    return after


@inline
def scaled_whole(dots, scale, base, total, before, *, minima: bool):
    """As `scaled_floats`, i32[16]"""
    less = base * vec(-cast(i32, total), 16)
    return before + dots * scale + less if minima else before + (dots + less) * scale


@inline
def add_half(
    sums, x, w, t, b, section, q, part, half, *,
    minima: bool, whole: bool, tile: int, tokens: int, blocks: int,
):  # fmt: skip
    """sums += scales * codes . activations - minima * sum(activations), of half a group of 4 bits

    Whole numbers below 2^22, exact in int32 and in float32.
    """
    g = section * 4 + q
    at = codes_at(section, q, bits=4, minima=minima) + half * 256
    dots = registers(vec(cast(i32, 0), 16), tokens, blocks)
    for j in unroll(4):
        codes = registers(vec(cast(u8, 0), 64), blocks)
        for r in unroll(blocks):
            codes[r] = load(w, min(b + r, last_block(w)), at + j * 64, lanes=64)
        for m in unroll(tokens):
            first = quad(x, t, g, part * tokens + m, half * 32 + j * 4)
            second = quad(x, t, g, part * tokens + m, half * 32 + j * 4 + 16)
            for r in unroll(blocks):
                dots[m, r] = dot4_u7(dots[m, r], codes[r] & 15, first)
                dots[m, r] = dot4_u7(dots[m, r], codes[r] >> 4, second)
    for r in unroll(blocks):
        block = min(b + r, last_block(w))
        scale = half_scale(w, block, section, q, half, minima=minima)
        base = half_base(w, block, section, q, half, minima=minima)
        for m in unroll(tokens):
            total = half_sum(x, t, g, part * tokens + m, half, tile=tile)
            if whole:
                after = scaled_whole(dots[m, r], scale, base, total, sums[m, r], minima=minima)
            else:
                after = scaled_floats(dots[m, r], scale, base, total, sums[m, r], minima=minima)
            sums[m, r] = after


@inline
def add_bytes(
    sums, x, w, t, b, section, q, part, *, signed: bool, tile: int, tokens: int, blocks: int
):
    """sums = (codes - 128) . activations of a group of 8 bits, i32"""
    g = section * 4 + q
    at = codes_at(section, q, bits=8, minima=False)
    if not signed:
        for m in unroll(tokens):
            offset = group_offset(x, t, g, part * tokens + m, tile=tile)
            for r in unroll(blocks):
                sums[m, r] = offset
    for j in unroll(16):
        codes = registers(vec(cast(u8, 0), 64), blocks)
        for r in unroll(blocks):
            codes[r] = load(w, min(b + r, last_block(w)), at + j * 64, lanes=64)
        for m in unroll(tokens):
            four = quad(x, t, g, part * tokens + m, j * 4)
            for r in unroll(blocks):
                if signed:
                    sums[m, r] = dot4_i8(sums[m, r], bitcast(i8, codes[r] ^ 128), four)
                else:
                    sums[m, r] = dot4(sums[m, r], codes[r], four)


@inline
def add_group(
    acc, x, w, t, b, section, q, part, *,
    bits: int, minima: bool, signed: bool, whole: bool, tile: int, tokens: int, blocks: int,
):  # fmt: skip
    """acc += units * sums of a group of `tokens` rows and `blocks` blocks of weights"""
    zero = vec(cast(i32, 0), 16) if whole or bits == 8 else vec(0.0, 16)
    sums = registers(zero, tokens, blocks)
    if bits == 8:
        add_bytes(
            sums, x, w, t, b, section, q, part,
            signed=signed, tile=tile, tokens=tokens, blocks=blocks,
        )  # fmt: skip
    else:
        for half in unroll(2):
            add_half(
                sums, x, w, t, b, section, q, part, half,
                minima=minima, whole=whole, tile=tile, tokens=tokens, blocks=blocks,
            )  # fmt: skip
    for r in unroll(blocks):
        units = row_units(w, min(b + r, last_block(w)), section, bits=bits, minima=minima)
        for m in unroll(tokens):
            unit = group_unit(x, t, section * 4 + q, part * tokens + m, tile=tile)
            acc[m, r] = fma(cast(f32, sums[m, r]), units * vec(unit, 16), acc[m, r])


@inline
def fetch_ahead(w: u8[NB, ROW], b, g, groups, *, bits: int, minima: bool, blocks: int, ahead: int):
    """Group g + `ahead`, of these blocks or the next: a CPU sees no stream in short rows"""
    most = min(ahead, groups)
    wraps = g + most >= groups
    later = g + most - (groups if wraps else 0)
    header = section_at(later // 4, bits=bits, minima=minima) + later % 4 * 64
    codes = codes_at(later // 4, later % 4, bits=bits, minima=minima)
    for r in unroll(blocks):
        block = min(b + r + (blocks if wraps else 0), NB - 1)
        prefetch(w, block, header)
        for line in unroll(bits * 2):
            prefetch(w, block, codes + line * 64)


@kernel
def matmul_int(
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    y: f32[S, N],
    *,
    epilogue: Inline,
    bits: int,
    minima: bool,
    signed: bool,
    whole: bool,
    tile: int,
    strip: int,
    tokens: int,
    blocks: int,
    ahead: int,
):
    """y[s, n] = epilogue(sum_k x[s, k] * w[n, k]) with x int8 in groups of 64 (quantize_rows)

    A task takes a tile of rows and a strip of blocks of weights, `tokens` by `blocks` at a time,
    and fetches what comes `ahead` groups later. For CPUs that multiply bytes of equal signs codes
    are made `signed`; for those that multiply int32 as fast as floats, sums of a group are `whole`.
    """
    for strip_, t in parallel(ceildiv(NB, strip * blocks), T):
        for part in range(tile // tokens):
            if t * tile + part * tokens < S:
                for row in range(strip):
                    b = (strip_ * strip + row) * blocks
                    acc = registers(vec(0.0, 16), tokens, blocks)
                    for section in range(ceildiv(G, 4)):
                        for q in range(min(4, G - section * 4)):
                            if ahead > 0:
                                fetch_ahead(
                                    w, b, section * 4 + q, G,
                                    bits=bits, minima=minima, blocks=blocks, ahead=ahead,
                                )  # fmt: skip
                            add_group(
                                acc, x, w, t, b, section, q, part,
                                bits=bits, minima=minima, signed=signed, whole=whole,
                                tile=tile, tokens=tokens, blocks=blocks,
                            )  # fmt: skip
                    for m in unroll(tokens):
                        for r in unroll(blocks):
                            s = t * tile + part * tokens + m
                            n = (b + r) * 16
                            if s < S and n < N:
                                store(y, s, n, epilogue(acc[m, r], s, n, N - n), count=N - n)


@inline
def store_plane(plane, w: u8[NB, ROW], b, section, q, *, bits: int, minima: bool, signed: bool):
    """plane[q] = a group's codes as int8, scales and minima applied; unsigned, 128 above that"""
    at = codes_at(section, q, bits=bits, minima=minima)
    if bits == 8:
        for j in unroll(16):
            codes = load(w, b, at + j * 64, lanes=64)
            store(plane, section % 4 * 4 + q, j, 0, codes ^ 128 if signed else codes)
    else:
        for half in unroll(2):
            scale = half_scale(w, b, section, q, half, minima=minima)
            minimum = half_minimum(w, b, section, q, half, minima=minima)
            shift = ((0 if signed else 128) - minimum) & 255
            shifts = bitcast(u8, shift * 0x01010101)
            factors = bitcast(i16, scale * 0x00010001)
            for j in unroll(4):
                both = load(w, b, at + half * 256 + j * 64, lanes=64)
                # No product of a byte reaches the next: two at a time.
                low = bitcast(u8, bitcast(i16, both & 15) * factors) + shifts
                high = bitcast(u8, bitcast(i16, both >> 4) * factors) + shifts
                store(plane, section % 4 * 4 + q, half * 8 + j, 0, low)
                store(plane, section % 4 * 4 + q, half * 8 + j + 4, 0, high)


@inline
def add_plane(
    acc, plane, x, w, t, b, section, q, part, *, bits: int, minima: bool, signed: bool, tokens: int
):
    """acc += units * plane . activations of a group of `tokens` rows"""
    g = section * 4 + q
    dots = registers(vec(cast(i32, 0), 16), tokens)
    if not signed:
        for m in unroll(tokens):
            dots[m] = group_offset(x, t, g, part * tokens + m, tile=16)
    for j in unroll(16):
        for m in unroll(tokens):
            four = quad(x, t, g, part * tokens + m, j * 4)
            if signed:
                codes = load(plane, section % 4 * 4 + q, j, 0, lanes=64, as_=i8)
                dots[m] = dot4_i8(dots[m], codes, four)
            else:
                dots[m] = dot4(dots[m], load(plane, section % 4 * 4 + q, j, 0, lanes=64), four)
    units = row_units(w, b, section, bits=bits, minima=minima)
    for m in unroll(tokens):
        unit = group_unit(x, t, g, part * tokens + m, tile=16)
        acc[m] = fma(cast(f32, dots[m]), units * vec(unit, 16), acc[m])


@inline
def add_tile(acc, products, plane, x, w, t, b, section, *, bits: int, minima: bool):
    """acc += units * plane . activations of a section and 16 rows, the product by a matrix unit

    Between that unit and the vector unit goes memory, and who reads at once what the other wrote
    waits for it: so each takes all groups of the section in turn.
    """
    for q in unroll(4):
        if section * 4 + q < groups_of(x):
            place = section % 4 * 4 + q
            dot_tile(products, q, x, t, section * 4 + q, 0, 0, plane, place, 0, 0)
    units = row_units(w, b, section, bits=bits, minima=minima)
    for q in unroll(4):
        if section * 4 + q < groups_of(x):
            for m in unroll(16):
                unit = group_unit(x, t, section * 4 + q, m, tile=16)
                dots = cast(f32, load(products, q, m, 0, lanes=16))
                acc[m] = fma(dots, units * vec(unit, 16), acc[m])


@inline
def fill_plane(
    plane, w: u8[NB, ROW], b, first, last, groups, *, bits: int, minima: bool, signed: bool
):
    """The plane of sections `first` to `last` of a block"""
    for section in range(first, last):
        for q in range(min(4, groups - section * 4)):
            store_plane(plane, w, b, section, q, bits=bits, minima=minima, signed=signed)


@inline
def fetch_next(w: u8[NB, ROW], b, first, last, i, *, bits: int, minima: bool):
    """An eighth of the next block's sections, so that its codes are there when they are wanted"""
    for section in range(first, last):
        size = section_at(1, bits=bits, minima=minima)
        for line in unroll(ceildiv(size, 512)):
            at = section * size + (i * ceildiv(size, 512) + line) * 64
            prefetch(w, min(b + 1, NB - 1), min(at, ROW - 1))


@inline
def add_sections(
    sums, products, plane, x, w, t, b, i, part, first, last, *,
    bits: int, minima: bool, signed: bool, matrix: bool, tokens: int,
):  # fmt: skip
    """sums[i] of `tokens` rows += units * plane . activations of sections `first` to `last`"""
    acc = registers(vec(0.0, 16), tokens)
    if first > 0:
        for m in unroll(tokens):
            acc[m] = load(sums, i, part * tokens + m, 0, lanes=16)
    for section in range(first, last):
        if matrix:
            add_tile(acc, products, plane, x, w, t, b, section, bits=bits, minima=minima)
        else:
            for q in range(min(4, groups_of(x) - section * 4)):
                add_plane(
                    acc, plane, x, w, t, b, section, q, part,
                    bits=bits, minima=minima, signed=signed, tokens=tokens,
                )  # fmt: skip
    for m in unroll(tokens):
        store(sums, i, part * tokens + m, 0, acc[m])


@kernel
def matmul_plane(
    x: u8[T, G, LINES, BYTES],
    w: u8[NB, ROW],
    y: f32[S, N],
    *,
    epilogue: Inline,
    bits: int,
    minima: bool,
    signed: bool,
    matrix: bool,
    strip: int,
    tiles: int,
    tokens: int,
):
    """matmul_int for many rows: a task makes a block of weights int8 once for `tiles` tiles

    A plane of up to 1,024 columns stays in the first cache meanwhile. With `matrix`, 16 rows at a
    time by a matrix unit, else `tokens`. Neighbouring tasks share activations.
    """
    plane = scratch(u8, 16, 16, 64)
    sums = scratch(f32, tiles, 16, 16)
    products = scratch(i32, 4 if matrix else 1, 16, 16)
    for several, strip_ in parallel(ceildiv(S, tiles * 16), ceildiv(NB, strip)):
        for b in range(strip_ * strip, min(strip_ * strip + strip, NB)):
            for first in range(0, ceildiv(G, 4), 4):
                last = min(first + 4, ceildiv(G, 4))
                fill_plane(plane, w, b, first, last, G, bits=bits, minima=minima, signed=signed)
                for i in range(min(tiles, T - several * tiles)):
                    t = several * tiles + i
                    if i < 8:
                        fetch_next(w, b, first, last, i, bits=bits, minima=minima)
                    if first == 0 and t * 16 + 16 <= S:
                        for m in unroll(16):
                            prefetch(y, t * 16 + m, b * 16)
                    for part in range(16 // tokens):
                        if t * 16 + part * tokens < S:
                            add_sections(
                                sums, products, plane, x, w, t, b, i, part, first, last, bits=bits,
                                minima=minima, signed=signed, matrix=matrix, tokens=tokens,
                            )  # fmt: skip
                    if last == ceildiv(G, 4):
                        for m in range(min(16, S - t * 16)):
                            s = t * 16 + m
                            n = b * 16
                            value = load(sums, i, m, 0, lanes=16)
                            store(y, s, n, epilogue(value, s, n, N - n), count=N - n)


@inline
def add_products(sums, rows, w, b, section, q, *, bits: int, minima: bool, tokens: int):
    """sums += x . codes of a group, scales and minima applied, in order of the codes' bytes"""
    at = codes_at(section, q, bits=bits, minima=minima)
    for half in unroll(2):
        if bits == 4:
            scale = half_scale(w, b, section, q, half, minima=minima)
            minimum = half_minimum(w, b, section, q, half, minima=minima)
        for j in range(bits):
            quads = load(w, b, at + half * (64 * bits) + j * 64, lanes=16, as_=i32)
            for i in unroll(4):
                for nibble in unroll(8 // bits):
                    if bits == 4:
                        code = ((quads >> (8 * i + 4 * nibble)) & 15) * scale - minimum
                    else:
                        code = ((quads >> (8 * i)) & 255) - 128
                    value = cast(f32, code)
                    for m in unroll(tokens):
                        k = section * 256 + q * 64 + half * 32 + nibble * 16 + j * 4 + i
                        sums[m] = fma(vec(rows[m, k], 16), value, sums[m])


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
    minima: bool,
    tokens: int,
    blocks: int,
):
    """y[s, n] = epilogue(sum_k prologue(x[s, k]) * w[n, k]) with float activations

    A section's products are summed before its unit is applied.
    """
    rows = scratch(f32, tokens, ceildiv(K, 64) * 64)
    for b, t in parallel(ceildiv(NB, blocks), ceildiv(S, tokens)):
        for m in unroll(tokens):
            s = min(t * tokens + m, S - 1)
            for k in range(0, ceildiv(K, 64) * 64, 16):
                value = load(x, s, k, lanes=16, count=K - k) if k < K else vec(0.0, 16)
                if staged:
                    value = prologue(value, s, k, K - k)
                store(rows, m, k, value)
        for r in unroll(blocks):
            block = min(b * blocks + r, NB - 1)
            acc = registers(vec(0.0, 16), tokens)
            for section in range(ceildiv(K, 256)):
                sums = registers(vec(0.0, 16), tokens)
                for q in range(min(4, ceildiv(K, 64) - section * 4)):
                    add_products(
                        sums, rows, w, block, section, q, bits=bits, minima=minima, tokens=tokens
                    )
                units = row_units(w, block, section, bits=bits, minima=minima)
                for m in unroll(tokens):
                    acc[m] = fma(sums[m], units, acc[m])
            for m in unroll(tokens):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    store(y, s, n, epilogue(acc[m], s, n, N - n), count=N - n)
