"""Keys and values into the paged cache: blocks of 32 tokens, keys as [D][32], values as [32][D].

A tile is what a block has of one layer, of keys or of values, and of one KV head. As int8, each of
its tokens has a float32 scale, max|x| / 127 over the head; the 32 scales follow the codes.
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
    """row = x[s, g], with zeros up to whole vectors"""
    for d in range(0, D, 16):
        store(row, d, load(x, s, g, d, lanes=16, count=D - d))


@inline
def stage_key(row, k: f32[S, G, D], s, g, *, pairs: Inline, staged: bool):
    """row = k[s, g], its pairs prepared first, with zeros up to whole vectors"""
    if staged:
        store(row, (D - 1) // 16 * 16, vec(0.0, 16))
        for d in range(0, D // 2, 16):
            count = D // 2 - d
            both = pairs(load_pairs(k, s, g, d, count), s, d, count)
            store(row, d, low(both), count=count)
            store(row, D // 2 + d, high(both), count=count)
    else:
        stage_vector(row, k, s, g)


@inline
def encode(codes, row, *, size: int):
    """codes = int8 of a row in units of its scale, which is returned"""
    peak = vec(0.0, 16)
    for d in range(0, size, 16):
        peak = max(peak, abs(load(row, d, lanes=16)))
    top = reduce_max(peak)
    inverse = 127.0 / top if top > 1e-30 else cast(f32, 0.0)
    for d in range(0, size, 16):
        code = round(load(row, d, lanes=16) * vec(inverse, 16))
        store(codes, d, cast(i8, cast(i32, code)))
    return top / 127.0


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
    row = scratch(f32, ceildiv(D, 16) * 16)
    codes = scratch(i8, ceildiv(D, 16) * 16)
    for s, g in parallel(S, G):
        position = index(positions[s])
        block = index(block_table[index(sequence[s]), position // 32])
        t = position % 32
        stage_key(row, k, s, g, pairs=pairs, staged=staged)
        if scaled:
            scale = encode(codes, row, size=D)
            store(kv, block, layer, 0, g, D * 32 + t * 4, bitcast(i8, scale))
            for d in range(D):
                kv[block, layer, 0, g, d * 32 + t] = codes[d]
            stage_vector(row, v, s, g)
            value_scale = encode(codes, row, size=D)
            store(kv, block, layer, 1, g, D * 32 + t * 4, bitcast(i8, value_scale))
            for d in range(0, D, 16):
                store(kv, block, layer, 1, g, t * D + d, load(codes, d, lanes=16), count=D - d)
        else:
            for d in range(D):
                kv[block, layer, 0, g, d * 32 + t] = cast(KV, row[d])
            for d in range(0, D, 16):
                value = cast(KV, load(v, s, g, d, lanes=16, count=D - d))
                store(kv, block, layer, 1, g, t * D + d, value, count=D - d)
