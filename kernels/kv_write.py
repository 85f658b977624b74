"""Keys and values into the paged cache: blocks of 32 tokens, keys as [D][32], values as [32][D].

A tile is what a block has of one layer, of keys or of values, and of one KV head. As int8, what a
product of bytes sums lies together in fours: keys are [2][D / 4][16][4], halves of 16 tokens with
four elements of each token, values [8][D][4], with four tokens' element. Each token has a float32
scale, max|x| / 127 over the head; the 32 scales follow the codes.
"""

from __future__ import annotations

from ondevice.kernels.rope import load_pairs
from ondevice.lang import (
    DType,
    Inline,
    bitcast,
    cast,
    ceildiv,
    f32,
    high,
    i8,
    i32,
    index,
    inline,
    kernel,
    load,
    low,
    parallel,
    reduce_add,
    reduce_max,
    scratch,
    store,
    vec,
)


@inline
def tile_scale(kv, block, layer, plane, g, half, *, head_dim: int):
    """f32[16]: the scales of the first or second 16 tokens of a tile of int8 codes"""
    return load(kv, block, layer, plane, g, head_dim * 32 + half * 64, lanes=16, as_=f32)


@inline
def stage_vector(row, x: f32[S, G, D], s, g):
    """row[0] = x[s, g], with zeros up to whole vectors"""
    for d in range(0, D, 16):
        store(row, 0, d, load(x, s, g, d, lanes=16, count=D - d))


@inline
def stage_key(row, k: f32[S, G, D], s, g, *, pairs: Inline, staged: bool):
    """row[0] = k[s, g], its pairs prepared first, with zeros up to whole vectors"""
    if staged:
        store(row, 0, (D - 1) // 16 * 16, vec(0.0, 16))
        for d in range(0, D // 2, 16):
            count = D // 2 - d
            both = pairs(load_pairs(k, s, g, d, count), s, d, count)
            store(row, 0, d, low(both), count=count)
            store(row, 0, D // 2 + d, high(both), count=count)
    else:
        stage_vector(row, k, s, g)


@inline
def peak_of(rows, m, size):
    """max|x| of a row of `size` elements"""
    peak = vec(0.0, 16)
    for d in range(0, size, 16):
        peak = max(peak, abs(load(rows, m, d, lanes=16)))
    return reduce_max(peak)


@inline
def encode(codes, rows, m, size, top):
    """codes[m] = int8 of a row in units of top / 127; the sum of the codes"""
    inverse = 127.0 / top if top > 1e-30 else cast(f32, 0.0)
    total = vec(cast(i32, 0), 16)
    for d in range(0, size, 16):
        code = cast(i32, round(load(rows, m, d, lanes=16) * vec(inverse, 16)))
        store(codes, m, d, cast(i8, code))
        total = total + code
    return reduce_add(total)


@kernel
def kv_write(
    kv: KV[P, LAYERS, 2, G, TILE],
    k: f32[S, G, D],
    v: f32[S, G, D],
    positions: i32[S],
    sequence: i32[S],
    block_table: i32[B, W],
    layer: index,
    *,
    KV: DType,
    pairs: Inline,
    staged: bool,
    scaled: bool,
):
    """Stores the step's keys and values at their positions, rounded to the cache's dtype"""
    row = scratch(f32, 1, ceildiv(D, 16) * 16)
    codes = scratch(i8, 1, ceildiv(D, 16) * 16)
    for s, g in parallel(S, G):
        position = index(positions[s])
        block = index(block_table[index(sequence[s]), position // 32])
        t = position % 32
        stage_key(row, k, s, g, pairs=pairs, staged=staged)
        if scaled:
            top = peak_of(row, 0, D)
            encode(codes, row, 0, D, top)
            store(kv, block, layer, 0, g, D * 32 + t * 4, bitcast(i8, top / 127.0))
            for d in range(D // 4):
                four = bitcast(i8, load(codes, 0, d * 4, lanes=1, as_=i32))
                store(kv, block, layer, 0, g, (t // 16 * (D // 4) + d) * 64 + t % 16 * 4, four)
            stage_vector(row, v, s, g)
            value_top = peak_of(row, 0, D)
            encode(codes, row, 0, D, value_top)
            store(kv, block, layer, 1, g, D * 32 + t * 4, bitcast(i8, value_top / 127.0))
            for d in range(D):
                kv[block, layer, 1, g, t // 4 * (D * 4) + d * 4 + t % 4] = codes[0, d]
        else:
            for d in range(D):
                kv[block, layer, 0, g, d * 32 + t] = cast(KV, row[0, d])
            for d in range(0, D, 16):
                value = cast(KV, load(v, s, g, d, lanes=16, count=D - d))
                store(kv, block, layer, 1, g, t * D + d, value, count=D - d)
