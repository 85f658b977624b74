"""Attention over a paged KV cache: blocks of 32 tokens, keys as [D][32], values as [32][D].

A task attends for a tile of rows, (token, head) pairs that share a KV head, so that a key or value
is loaded and made a float once for all of them. Positions are taken in spans of 256 on every path:
the scores of a span, their softmax (arXiv 1706.03762), the sum of its values, which then joins the
sums of the spans before it (arXiv 1805.02867, 2205.14135). A position that a row does not see has
weight 0 exactly, so the bits of a row depend neither on its tile nor on who computes its spans.
"""

from __future__ import annotations

from ondevice.bundle.program import KV_SPAN_TOKENS
from ondevice.kernels.attention_int import (
    encode_row,
    score_bytes,
    stage_scales,
    sum_value_bytes,
)
from ondevice.kernels.kv_write import peak_of
from ondevice.kernels.rope import load_pairs
from ondevice.lang import (
    DType,
    Inline,
    cast,
    ceildiv,
    f32,
    fma,
    high,
    i8,
    i32,
    index,
    inline,
    iota,
    kernel,
    load,
    low,
    parallel,
    prefetch,
    reduce_add,
    reduce_max,
    registers,
    scratch,
    select,
    store,
    unroll,
    vec,
)
from ondevice.lang.math import exp_below

SPAN = KV_SPAN_TOKENS
TASK_HEADS = 16  # of one task at most
MIXED = frozenset({"avx512vnni", "avxvnni"})  # multiply bytes of which one side is unsigned


@inline
def stage_query(queries, q: f32[S, H, D], m, s, h, *, pairs: Inline, staged: bool, scale: float):
    """queries[m] = scale * q[s, h], its pairs prepared first, with zeros up to whole vectors"""
    if staged:
        store(queries, m, (D - 1) // 16 * 16, vec(0.0, 16))
        for d in range(0, D // 2, 16):
            count = D // 2 - d
            both = pairs(load_pairs(q, s, h, d, count), s, d, count) * scale
            store(queries, m, d, low(both), count=count)
            store(queries, m, D // 2 + d, high(both), count=count)
    else:
        for d in range(0, D, 16):
            store(queries, m, d, load(q, s, h, d, lanes=16, count=D - d) * scale)


@inline
def score_span(
    weights, peaks, queries, kv, block_table, row, layer, g, first, last, seen, step, vectors,
    *, KV: DType, head_dim: int, tiles: int, rows: int, heads: int, keys: int,
):  # fmt: skip
    """weights[m, t] = score of row m and position t of the span, -1e30 where the row sees none

    `keys` vectors of 16 positions at once. The span starts at block `first` of the conversation,
    whose last is `last`; row m sees `seen` + m // heads * step of its positions. Each pass over a
    block fetches its part of what is read next: the following keys, in the end the first values.
    """
    for m in range(tiles * rows):
        store(peaks, m, 0, vec(-1e30, 16))
    several = ceildiv(keys, 2)
    halves = 2 if keys == 1 else 1
    for v in range(0, vectors, keys):
        here = first + v // 2
        plane = index(0) if v + keys < vectors else index(1)
        ahead = first + (v + keys) // 2 if v + keys < vectors else first
        blocks = registers(index(0), several)
        following = registers(index(0), several)
        for i in unroll(several):
            blocks[i] = index(block_table[row, min(here + i, last)])
            following[i] = index(block_table[row, min(ahead + i, last)])
        for tile in range(tiles):
            part = (tile * halves + v % halves) * head_dim
            dots = registers(vec(0.0, 16), rows, keys)
            for d in range(head_dim):
                for i in unroll(several):
                    line = (part + d) * (32 // (tiles * halves))
                    prefetch(kv, following[i], layer, plane, g, line)
                key = registers(vec(0.0, 16), keys)
                for i in unroll(keys):
                    at = d * 32 + (i % 2 * 16 if keys > 1 else v % 2 * 16)
                    key[i] = cast(f32, load(kv, blocks[i // 2], layer, 0, g, at, lanes=16))
                for m in unroll(rows):
                    query = vec(queries[tile * rows + m, d], 16)
                    for i in unroll(keys):
                        dots[m, i] = fma(query, key[i], dots[m, i])
            for m in unroll(rows):
                r = tile * rows + m
                end = vec(cast(i32, seen + r // heads * step - v * 16), 16)
                peak = load(peaks, r, 0, lanes=16)
                for i in unroll(keys):
                    score = select(iota(16) + 16 * i < end, dots[m, i], vec(-1e30, 16))
                    store(weights, r, (v + i) * 16, score)
                    peak = max(peak, score)
                store(peaks, r, 0, peak)


@inline
def weigh_span(weights, peaks, state, tops, scales, vectors, *, rows: int, scaled: bool):
    """Scores become weights; state[m] = (peak, total) so far and the factors of (old, new) sums

    With `scaled`, weight t is stored times scales[t]; tops[m] is the largest.
    """
    for m in range(rows):
        peak = reduce_max(load(peaks, m, 0, lanes=16))
        total = vec(0.0, 16)
        largest = vec(0.0, 16)
        for v in range(vectors):
            weight = exp_below(load(weights, m, v * 16, lanes=16) - vec(peak, 16))
            kept = weight * load(scales, v * 16, lanes=16) if scaled else weight
            store(weights, m, v * 16, kept)
            largest = max(largest, kept)
            total = total + weight
        top = max(state[m, 0], peak)
        old = exp_below(state[m, 0] - top)
        new = exp_below(peak - top)
        state[m, 0] = top
        state[m, 1] = fma(state[m, 1], old, reduce_add(total) * new)
        state[m, 2] = old
        state[m, 3] = new
        if scaled:
            tops[m] = reduce_max(largest)


@inline
def add_values(
    fresh, weights, kv, block, layer, g, following, plane, next_g, b, count, column,
    *, KV: DType, head_dim: int, tiles: int, rows: int, columns: int, whole: bool,
):  # fmt: skip
    """fresh += weights . values of block b, `columns` vectors of 16 elements from `column` on"""
    step = min(head_dim, columns * 16) // tiles
    for tile in range(tiles):
        acc = registers(vec(0.0, 16), rows, columns)
        for m in unroll(rows):
            for c in unroll(columns):
                acc[m, c] = load(fresh, tile * rows + m, column + c * 16, lanes=16)
        for t in range(count):
            prefetch(kv, following, layer, plane, next_g, column * 32 + (tile * 32 + t) * step)
            value = registers(vec(0.0, 16), columns)
            for c in unroll(columns):
                d = column + c * 16
                at = t * head_dim + d
                left = 16 if whole else head_dim - d
                value[c] = cast(f32, load(kv, block, layer, 1, g, at, lanes=16, count=left))
            for m in unroll(rows):
                weight = vec(weights[tile * rows + m, b * 32 + t], 16)
                for c in unroll(columns):
                    acc[m, c] = fma(weight, value[c], acc[m, c])
        for m in unroll(rows):
            for c in unroll(columns):
                store(fresh, tile * rows + m, column + c * 16, acc[m, c])


@inline
def sum_values(
    fresh, weights, kv, block_table, row, layer, g, first, count, after, after_g,
    *, KV: DType, head_dim: int, tiles: int, rows: int, columns: int,
):  # fmt: skip
    """fresh = weights . values of a span; block `after` of head `after_g` has the next keys"""
    for m in range(tiles * rows):
        for d in range(0, head_dim, 16):
            store(fresh, m, d, vec(0.0, 16))
    wide = columns * 16
    blocks = ceildiv(count, 32)
    for b in range(blocks):
        block = index(block_table[row, first + b])
        following = index(block_table[row, first + b + 1 if b + 1 < blocks else after])
        plane = index(1) if b + 1 < blocks else index(0)
        next_g = g if b + 1 < blocks else after_g
        left = min(32, count - b * 32)
        for group in range(head_dim // wide):
            add_values(
                fresh, weights, kv, block, layer, g, following, plane, next_g, b, left,
                group * wide,
                KV=KV, head_dim=head_dim, tiles=tiles, rows=rows, columns=columns, whole=True,
            )  # fmt: skip
        if head_dim % wide != 0:
            add_values(
                fresh, weights, kv, block, layer, g, following, plane, next_g, b, left,
                head_dim // wide * wide,
                KV=KV, head_dim=head_dim, tiles=tiles, rows=rows,
                columns=ceildiv(head_dim % wide, 16), whole=head_dim % 16 == 0,
            )  # fmt: skip


@inline
def join_sums(sums, fresh, state, *, rows: int, head_dim: int):
    """sums over the spans so far, with those of one more"""
    for m in range(rows):
        old = vec(state[m, 2], 16)
        new = vec(state[m, 3], 16)
        for d in range(0, head_dim, 16):
            value = load(fresh, m, d, lanes=16) * new
            store(sums, m, d, fma(load(sums, m, d, lanes=16), old, value))


@inline
def start_rows(
    state, sums, queries, codes, units, corrections, q: f32[S, H, D], base, step, head,
    *, pairs: Inline, staged: bool, scaled: bool, scale: float, rows: int, heads: int,
):  # fmt: skip
    """Rows that have seen nothing: the queries of `heads` heads of tokens `step` apart"""
    for m in range(rows):
        s = min(base + m // heads * step, S - 1)
        stage_query(queries, q, m, s, head + m % heads, pairs=pairs, staged=staged, scale=scale)
        if scaled:
            encode_row(codes, units, corrections, queries, m, D, peak_of(queries, m, D))
        state[m, 0] = cast(f32, -1e30)
        state[m, 1] = cast(f32, 0.0)
        for d in range(0, D, 16):
            store(sums, m, d, vec(0.0, 16))


@inline
def attend_span(
    queries, codes, units, corrections, state, sums, kv, block_table, row, layer, g, span,
    position, step, length, after, after_g,
    *, KV: DType, head_dim: int, tiles: int, rows: int, heads: int, keys: int, columns: int,
    scaled: bool, signed: bool,
):  # fmt: skip
    """The rows' state and sums go over one more span; `length` tokens from `position` on.

    The keys that are wanted next are those of head `after_g` in block `after`.
    """
    weights = scratch(f32, tiles * rows, SPAN)
    peaks = scratch(f32, tiles * rows, 16)
    fresh = scratch(f32, tiles * rows, ceildiv(head_dim, 16) * 16)
    tops = scratch(f32, tiles * rows)
    scales = scratch(f32, SPAN if scaled else 16)
    first = span * (SPAN // 32)
    last = (position + length - 1) // 32
    seen = position + 1 - span * SPAN
    count = min(SPAN, seen + length - 1)
    vectors = ceildiv(ceildiv(count, 16), keys) * keys
    if scaled:
        score_bytes(
            weights, peaks, codes, units, corrections, kv, block_table, row, layer, g, first, last,
            seen, step, vectors,
            head_dim=head_dim, tiles=tiles, rows=rows, heads=heads, keys=keys, signed=signed,
        )  # fmt: skip
        stage_scales(
            scales, kv, block_table, row, layer, g, first, last, count, vectors, head_dim=head_dim
        )
    else:
        score_span(
            weights, peaks, queries, kv, block_table, row, layer, g, first, last, seen, step,
            vectors, KV=KV, head_dim=head_dim, tiles=tiles, rows=rows, heads=heads, keys=keys,
        )  # fmt: skip
    weigh_span(weights, peaks, state, tops, scales, vectors, rows=tiles * rows, scaled=scaled)
    if scaled:
        sum_value_bytes(
            fresh, weights, tops, kv, block_table, row, layer, g, first, count, after, after_g,
            vectors,
            head_dim=head_dim, tiles=tiles, rows=rows, columns=columns, signed=signed,
        )  # fmt: skip
    else:
        sum_values(
            fresh, weights, kv, block_table, row, layer, g, first, count, after, after_g,
            KV=KV, head_dim=head_dim, tiles=tiles, rows=rows, columns=columns,
        )  # fmt: skip
    join_sums(sums, fresh, state, rows=tiles * rows, head_dim=head_dim)


@inline
def distance(positions, sequence, start, number):
    """1 where `number` tokens follow each other in one conversation, else 0"""
    together = cast(i32, 1)
    for s in range(start + 1, start + number):
        if not (positions[s] == positions[s - 1] + 1 and sequence[s] == sequence[s - 1]):
            together = cast(i32, 0)
    return index(together)


@kernel
def attention(
    q: f32[S, H, D],
    kv: KV[P, LAYERS, 2, G, TILE],
    positions: i32[S],
    sequence: i32[S],
    block_table: i32[B, W],
    y: f32[S, H, D],
    layer: index,
    *,
    KV: DType,
    pairs: Inline,
    staged: bool,
    scaled: bool,
    signed: bool,
    scale: float,
    tokens: int,
    heads: int,
    rows: int,
    keys: int,
    columns: int,
):
    """y[s, h] = softmax(scale * q[s, h] . keys) . values over positions 0..positions[s]

    A tile is `tokens` tokens in a row of one conversation, by `heads` heads of one KV head. Where
    the tokens do not follow each other, they are attended one after the other.
    """
    tiles = ceildiv(tokens * heads, rows)
    queries = scratch(f32, tiles * rows, ceildiv(D, 16) * 16)
    codes = scratch(i8, tiles * rows, ceildiv(D, 16) * 16)
    units = scratch(f32, tiles * rows)
    corrections = scratch(i32, tiles * rows)
    state = scratch(f32, tiles * rows, 4)
    sums = scratch(f32, tiles * rows, ceildiv(D, 16) * 16)
    for part, tile in parallel(H // heads, ceildiv(S, tokens)):
        head = part * heads
        start = tile * tokens
        number = min(tokens, S - start)
        step = distance(positions, sequence, start, number)
        length = number if step == 1 else 1
        for run in range(number if step == 0 else 1):
            base = start + run
            position = index(positions[base])
            row = index(sequence[base])
            start_rows(
                state, sums, queries, codes, units, corrections, q, base, step, head, pairs=pairs,
                staged=staged, scaled=scaled, scale=scale, rows=tiles * rows, heads=heads,
            )  # fmt: skip
            g = head // (H // G)
            for span in range(ceildiv(position + length, SPAN)):
                after = min((span + 1) * (SPAN // 32), (position + length - 1) // 32)
                attend_span(
                    queries, codes, units, corrections, state, sums, kv, block_table, row, layer, g,
                    span, position, step, length, after, g,
                    KV=KV, head_dim=D, tiles=tiles, rows=rows, heads=heads, keys=keys,
                    columns=columns, scaled=scaled, signed=signed,
                )  # fmt: skip
            for m in range(length * heads):
                share = vec(1.0 / state[m, 1], 16)
                for c in unroll(ceildiv(D, 16)):
                    # + 0.0: sums that end at -0.0 on one path may end at 0.0 on another
                    value = load(sums, m, c * 16, lanes=16) * share + 0.0
                    store(y, base + m // heads, head + m % heads, c * 16, value, count=D - c * 16)


@kernel
def attention_parts(
    q: f32[S, H, D],
    kv: KV[P, LAYERS, 2, G, TILE],
    positions: i32[S],
    sequence: i32[S],
    block_table: i32[B, W],
    parts: f32[S, X, H, E],
    layer: index,
    spans: index,
    *,
    KV: DType,
    pairs: Inline,
    staged: bool,
    scaled: bool,
    signed: bool,
    scale: float,
    tokens: int,
    heads: int,
    rows: int,
    keys: int,
    columns: int,
):
    """What each of the first `spans` spans gives each token: sums of values, peak, sum of weights

    A tile is one token of each conversation in turn: `tokens` is 1.
    """
    tiles = ceildiv(heads, rows)
    queries = scratch(f32, tiles * rows, ceildiv(D, 16) * 16)
    codes = scratch(i8, tiles * rows, ceildiv(D, 16) * 16)
    units = scratch(f32, tiles * rows)
    corrections = scratch(i32, tiles * rows)
    state = scratch(f32, tiles * rows, 4)
    sums = scratch(f32, tiles * rows, ceildiv(D, 16) * 16)
    for span, part in parallel(spans, H // heads):
        head = part * heads
        for s in range(S):
            position = index(positions[s])
            if span * SPAN <= position:
                start_rows(
                    state, sums, queries, codes, units, corrections, q, s, index(0), head,
                    pairs=pairs, staged=staged, scaled=scaled, scale=scale, rows=tiles * rows,
                    heads=heads,
                )  # fmt: skip
                g = head // (H // G)
                attend_span(
                    queries, codes, units, corrections, state, sums, kv, block_table,
                    index(sequence[s]), layer, g, span, position, index(0), 1,
                    span * (SPAN // 32), min(g + 1, G - 1),
                    KV=KV, head_dim=D, tiles=tiles, rows=rows, heads=heads, keys=keys,
                    columns=columns, scaled=scaled, signed=signed,
                )  # fmt: skip
                for m in range(heads):
                    for d in range(0, D, 16):
                        value = load(sums, m, d, lanes=16)
                        store(parts, s, span, head + m, d, value, count=D - d)
                    parts[s, span, head + m, D] = state[m, 0]
                    parts[s, span, head + m, D + 1] = state[m, 1]


@kernel
def attention_join(parts: f32[S, X, H, E], positions: i32[S], y: f32[S, H, D], *, pairs: Inline):
    """y[s, h] from the parts of the spans up to positions[s], joined as `weigh_span` does

    The queries, and what prepares their pairs, have gone into the parts.
    """
    for s, h in parallel(S, H):
        out = registers(vec(0.0, 16), ceildiv(D, 16))
        top = cast(f32, -1e30)
        total = cast(f32, 0.0)
        for span in range(index(positions[s]) // SPAN + 1):
            peak = parts[s, span, h, D]
            highest = max(top, peak)
            old = exp_below(top - highest)
            new = exp_below(peak - highest)
            top = highest
            total = fma(total, old, parts[s, span, h, D + 1] * new)
            for c in unroll(ceildiv(D, 16)):
                value = load(parts, s, span, h, c * 16, lanes=16, count=D - c * 16)
                out[c] = fma(out[c], vec(old, 16), value * vec(new, 16))
        share = vec(1.0 / total, 16)
        for c in unroll(ceildiv(D, 16)):
            store(y, s, h, c * 16, out[c] * share + 0.0, count=D - c * 16)


def attention_tile(
    shared: int, head_dim: int, room: int, least: int, tokens: int, features: frozenset[str]
) -> dict[str, int | bool]:
    """Up to `tokens` tokens by heads of the `shared` heads of a KV head: what a task attends for.

    `rows` of them at once, in `room` registers of 16 lanes; `least` is the room that all CPUs of
    the target agree on, for a task is the same on each. Each of `keys` (`columns`) vectors of keys
    (values) at once takes a register for itself and one for each row, and the row's factor takes
    one; the fewer the rows, the more vectors are needed for sums that do not wait for each other.
    Heads are preferred to tokens: their tile sees fewer positions in vain. `signed` is how the
    CPU multiplies bytes (attention_int).
    """

    def most(room: int) -> int:
        return (room - 1) // (2 if room >= 16 else 1) - 1

    def vectors(rows: int) -> int:
        return max(1, min(8, (room - 1) // (rows + 1)))

    heads = max(h for h in range(1, min(shared, TASK_HEADS) + 1) if shared % h == 0)
    together = heads * max(1, min(tokens, most(least) // heads))
    rows = -(-together // -(-together // most(room)))
    groups = -(-head_dim // (16 * vectors(rows)))
    return {
        "tokens": together // heads,
        "heads": heads,
        "rows": rows,
        "keys": 1 << (vectors(rows).bit_length() - 1),
        "columns": -(-head_dim // (16 * groups)),
        "signed": not features & MIXED,
    }
