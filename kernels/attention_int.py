"""Attention over keys and values that are int8: products of whole numbers, exact in any order.

A query becomes int8 under one scale, as a key or value is in the cache (`kv_write`). The weights of
a span, each times the scale of its value, become codes 0..127 under one scale of their own, so that
a row's sum over a span is one of products of bytes (as in arXiv 2410.02367, whose values are
floats).

`signed` says how bytes are multiplied: int8 by int8, or, for CPUs whose instruction wants one side
unsigned, what is cached as 128 above its meaning, which -128 * the sum of the row's codes corrects.
"""

from __future__ import annotations

from ondevice.bundle.program import KV_SPAN_TOKENS
from ondevice.kernels.kv_write import encode, tile_scale
from ondevice.lang import (
    bitcast,
    cast,
    ceildiv,
    dot4,
    dot4_i8,
    f32,
    i8,
    i32,
    index,
    inline,
    iota,
    load,
    prefetch,
    registers,
    scratch,
    select,
    store,
    u8,
    unroll,
    vec,
)


@inline
def four_of(codes, m, k):
    """i8[64]: four neighbouring codes of row m, 16 times"""
    return bitcast(i8, vec(load(codes, m, k, lanes=1, as_=i32), 16))


@inline
def add_bytes(acc, cached, four, *, signed: bool):
    """acc += cached . four, where unsigned with 128 more for each byte that is cached"""
    return dot4_i8(acc, cached, four) if signed else dot4(acc, bitcast(u8, cached ^ -128), four)


@inline
def encode_row(codes, units, corrections, rows, m, size, top):
    """codes[m] = int8 of rows[m], whose largest of `size` elements is `top`"""
    corrections[m] = encode(codes, rows, m, size, top) * -128
    units[m] = top / 127.0


@inline
def store_scores(weights, peaks, ends, units, dots, scales, v, first, *, rows: int, keys: int):
    """weights of `rows` rows from `first` on = products as floats, where a row sees the position"""
    places = iota(16) + vec(cast(i32, v * 16), 16)
    for m in unroll(rows):
        r = first + m
        unit = vec(units[r], 16)
        end = vec(ends[r], 16)
        peak = load(peaks, r, 0, lanes=16)
        for i in unroll(keys):
            value = cast(f32, dots[m, i]) * (scales[i] * unit)
            score = select(places + 16 * i < end, value, vec(-1e30, 16))
            store(weights, r, (v + i) * 16, score)
            peak = max(peak, score)
        store(peaks, r, 0, peak)


@inline
def score_bytes(
    weights, peaks, codes, units, corrections, kv, block_table, row, layer, g, first, last, seen,
    step, vectors,
    *, head_dim: int, tiles: int, rows: int, heads: int, keys: int, signed: bool,
):  # fmt: skip
    """`score_span` of int8 keys"""
    ends = scratch(i32, tiles * rows)
    for m in range(tiles * rows):
        store(peaks, m, 0, vec(-1e30, 16))
        ends[m] = cast(i32, seen + m // heads * step)
    several = ceildiv(keys, 2)
    halves = 2 if keys == 1 else 1
    share = 128 // (tiles * halves)  # bytes to fetch for each four elements
    for v in range(0, vectors, keys):
        here = first + v // 2
        plane = index(0) if v + keys < vectors else index(1)
        ahead = first + (v + keys) // 2 if v + keys < vectors else first
        blocks = registers(index(0), several)
        following = registers(index(0), several)
        for i in unroll(several):
            blocks[i] = index(block_table[row, min(here + i, last)])
            following[i] = index(block_table[row, min(ahead + i, last)])
            prefetch(kv, following[i], layer, plane, g, head_dim * 32)
            prefetch(kv, following[i], layer, plane, g, head_dim * 32 + 64)
        for tile in range(tiles):
            part = (tile * halves + v % halves) * (head_dim // 4)
            dots = registers(vec(cast(i32, 0), 16), rows, keys)
            if not signed:
                for m in unroll(rows):
                    for i in unroll(keys):
                        dots[m, i] = vec(corrections[tile * rows + m], 16)
            for d in range(head_dim // 4):
                for i in unroll(several):
                    for line in unroll(ceildiv(share, 64)):
                        at = (part + d) * share + line * 64
                        prefetch(kv, following[i], layer, plane, g, at)
                key = registers(vec(cast(i8, 0), 64), keys)
                for i in unroll(keys):
                    half = i % 2 if keys > 1 else v % 2
                    at = half * (head_dim * 16) + d * 64
                    key[i] = load(kv, blocks[i // 2], layer, 0, g, at, lanes=64)
                for m in unroll(rows):
                    four = four_of(codes, tile * rows + m, d * 4)
                    for i in unroll(keys):
                        dots[m, i] = add_bytes(dots[m, i], key[i], four, signed=signed)
            scales = registers(vec(0.0, 16), keys)
            for i in unroll(keys):
                half = i % 2 if keys > 1 else v % 2
                scales[i] = tile_scale(kv, blocks[i // 2], layer, 0, g, half, head_dim=head_dim)
            store_scores(
                weights, peaks, ends, units, dots, scales, v, tile * rows, rows=rows, keys=keys
            )


@inline
def stage_scales(
    scales, kv, block_table, row, layer, g, first, last, count, vectors, *, head_dim: int
):
    """scales[t] = the scale of value t of the span, 0 behind the `count` that are written"""
    for v in range(vectors):
        block = index(block_table[row, min(first + v // 2, last)])
        scale = tile_scale(kv, block, layer, 1, g, v % 2, head_dim=head_dim)
        written = iota(16) < vec(cast(i32, count - v * 16), 16)
        store(scales, v * 16, select(written, scale, vec(0.0, 16)))


@inline
def add_value_bytes(
    fresh, codes, units, corrections, kv, block_table, row, layer, g, first, count, after, after_g,
    column,
    *, head_dim: int, tiles: int, rows: int, columns: int, signed: bool,
):  # fmt: skip
    """fresh = units * codes . values, `columns` vectors of 16 elements from `column` on"""
    blocks = ceildiv(count, 32)
    share = min(head_dim - column, columns * 16) * 4 // tiles  # bytes to fetch for four tokens
    for tile in range(tiles):
        acc = registers(vec(cast(i32, 0), 16), rows, columns)
        if not signed:
            for m in unroll(rows):
                for c in unroll(columns):
                    acc[m, c] = vec(corrections[tile * rows + m], 16)
        for b in range(blocks):
            block = index(block_table[row, first + b])
            following = index(block_table[row, first + b + 1 if b + 1 < blocks else after])
            plane = index(1) if b + 1 < blocks else index(0)
            next_g = g if b + 1 < blocks else after_g
            for t in range(ceildiv(min(32, count - b * 32), 4)):
                for line in unroll(ceildiv(columns * 64, tiles * 64)):
                    at = column * 32 + (tile * 8 + t) * share + line * 64
                    prefetch(kv, following, layer, plane, next_g, at)
                value = registers(vec(cast(i8, 0), 64), columns)
                for c in unroll(columns):
                    # The last elements of a head may be fewer: what follows is not stored.
                    at = (t * head_dim + column + c * 16) * 4
                    value[c] = load(kv, block, layer, 1, g, at, lanes=64)
                for m in unroll(rows):
                    four = four_of(codes, tile * rows + m, b * 32 + t * 4)
                    for c in unroll(columns):
                        acc[m, c] = add_bytes(acc[m, c], value[c], four, signed=signed)
        for m in unroll(rows):
            unit = vec(units[tile * rows + m], 16)
            for c in unroll(columns):
                total = cast(f32, acc[m, c]) * unit
                store(fresh, tile * rows + m, column + c * 16, total)


@inline
def sum_value_bytes(
    fresh, weights, tops, kv, block_table, row, layer, g, first, count, after, after_g, vectors,
    *, head_dim: int, tiles: int, rows: int, columns: int, signed: bool,
):  # fmt: skip
    """`sum_values` of int8 values, whose scales are in the weights; tops[m] is the largest"""
    codes = scratch(i8, tiles * rows, KV_SPAN_TOKENS)
    units = scratch(f32, tiles * rows)
    corrections = scratch(i32, tiles * rows)
    for m in range(tiles * rows):
        encode_row(codes, units, corrections, weights, m, vectors * 16, tops[m])
    wide = columns * 16
    for group in range(head_dim // wide):
        add_value_bytes(
            fresh, codes, units, corrections, kv, block_table, row, layer, g, first, count,
            after, after_g, group * wide,
            head_dim=head_dim, tiles=tiles, rows=rows, columns=columns, signed=signed,
        )  # fmt: skip
    if head_dim % wide != 0:
        add_value_bytes(
            fresh, codes, units, corrections, kv, block_table, row, layer, g, first, count,
            after, after_g, head_dim // wide * wide,
            head_dim=head_dim, tiles=tiles, rows=rows, columns=ceildiv(head_dim % wide, 16),
            signed=signed,
        )  # fmt: skip
