"""Rotary position embedding (arXiv 2104.09864), half-split as in transformers."""

from __future__ import annotations

from ondevice.lang import Inline, f32, fma, high, inline, join, kernel, load, low, parallel, store


@inline
def rotate(pairs, s, d, count, angles: f32[S, D]):
    """Rotates (x[d], x[d + D/2]) by the angle with cos angles[s, d], sin angles[s, d + D/2]"""
    c = load(angles, s, d, lanes=16, count=count)
    z = load(angles, s, D // 2 + d, lanes=16, count=count)
    a = low(pairs)
    b = high(pairs)
    return join(fma(a, c, -(b * z)), fma(b, c, a * z))


@inline
def load_pairs(x: f32[S, H, D], s, h, d, count):
    """f32[32]: 16 elements from d on, and the 16 half a head behind them"""
    first = load(x, s, h, d, lanes=16, count=count)
    return join(first, load(x, s, h, D // 2 + d, lanes=16, count=count))


@kernel
def pairwise(x: f32[S, H, D], y: f32[S, H, D], *, apply: Inline):
    """y[s, h] = apply(x[s, h]), an op on pairs of elements half a head apart"""
    for s, h in parallel(S, H):
        for d in range(0, D // 2, 16):
            count = D // 2 - d
            pairs = apply(load_pairs(x, s, h, d, count), s, d, count)
            store(y, s, h, d, low(pairs), count=count)
            store(y, s, h, D // 2 + d, high(pairs), count=count)
