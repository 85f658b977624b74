"""Attention over a paged KV cache: blocks of 32 tokens, keys as [D][32], values as [32][D]."""

from __future__ import annotations

from ondevice.lang import (
    DType,
    cast,
    ceildiv,
    f32,
    fma,
    i32,
    index,
    iota,
    kernel,
    load,
    parallel,
    reduce_add,
    reduce_max,
    registers,
    scratch,
    select,
    store,
    unroll,
    vec,
)
from ondevice.lang.math import exp


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
):
    """Stores the step's keys and values at their positions; rounds to the cache's dtype"""
    for s, g in parallel(S, G):
        position = index(positions[s])
        block = index(block_table[index(sequence[s]), position // 32])
        t = position % 32
        for d in range(D):
            kv[block, layer, 0, g, d * 32 + t] = cast(KV, k[s, g, d])
        for d in range(0, D, 16):
            value = cast(KV, load(v, s, g, d, lanes=16, count=D - d))
            store(kv, block, layer, 1, g, t * D + d, value, count=D - d)


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
    scale: float,
):
    """y[s, h] = softmax(scale * q[s, h] . keys) . values over positions 0..positions[s]

    Online softmax (arXiv 1805.02867): blocks in order, each as a whole, so the bits of a row do not
    depend on what else is in the step.
    """
    weights = scratch(f32, 32)
    for s, h in parallel(S, H):
        g = h // (H // G)
        last = index(positions[s])
        row = index(sequence[s])
        out = registers(vec(0.0, 16), ceildiv(D, 16))
        top = cast(f32, -1e30)
        total = cast(f32, 0.0)
        for b in range(last // 32 + 1):
            block = index(block_table[row, b])
            left = last - b * 32 + 1
            low = vec(0.0, 16)
            high = vec(0.0, 16)
            for d in range(D):
                query = vec(q[s, h, d], 16)
                low = fma(query, cast(f32, load(kv, block, layer, 0, g, d * 32, lanes=16)), low)
                high = fma(
                    query, cast(f32, load(kv, block, layer, 0, g, d * 32 + 16, lanes=16)), high
                )
            valid = cast(i32, min(left, 32))
            low = select(iota(16) < vec(valid, 16), low * scale, vec(-1e30, 16))
            high = select(iota(16) + 16 < vec(valid, 16), high * scale, vec(-1e30, 16))
            peak = max(top, max(reduce_max(low), reduce_max(high)))
            low = exp(low - vec(peak, 16))
            high = exp(high - vec(peak, 16))
            store(weights, 0, low)
            store(weights, 16, high)
            keep = exp(top - peak)
            total = total * keep + reduce_add(low + high)
            top = peak
            for c in unroll(ceildiv(D, 16)):
                out[c] = out[c] * vec(keep, 16)
            for t in range(min(left, 32)):
                weight = vec(weights[t], 16)
                for c in unroll(ceildiv(D, 16)):
                    value = load(kv, block, layer, 1, g, t * D + c * 16, lanes=16, count=D - c * 16)
                    out[c] = fma(weight, cast(f32, value), out[c])
        for c in unroll(ceildiv(D, 16)):
            store(y, s, h, c * 16, out[c] / vec(total, 16), count=D - c * 16)
