"""Root mean square normalization (arXiv 1910.07467), whole or only its scale per row."""

from __future__ import annotations

from ondevice.lang import (
    cast,
    f32,
    fma,
    inline,
    kernel,
    load,
    parallel,
    reduce_add,
    sqrt,
    store,
    vec,
)


@inline
def row_scale(x, s, K, eps):
    """1 / sqrt(mean(x[s]^2) + eps): sixteen partial sums in order, then one fixed tree"""
    total = vec(0.0, 16)
    for k in range(0, K, 16):
        value = load(x, s, k, lanes=16, count=K - k)
        total = fma(value, value, total)
    return 1.0 / sqrt(reduce_add(total) / cast(f32, K) + eps)


@kernel
def rms_scale(x: f32[S, K], y: f32[S], *, eps: float):
    """y[s] = 1 / sqrt(mean(x[s]^2) + eps)"""
    for s in parallel(S):
        y[s] = row_scale(x, s, K, eps)


@kernel
def rmsnorm(x: f32[S, K], weight: f32[K], y: f32[S, K], *, eps: float):
    """y[s, k] = x[s, k] * rms_scale(x[s]) * weight[k]"""
    for s in parallel(S):
        scale = vec(row_scale(x, s, K, eps), 16)
        for k in range(0, K, 16):
            value = load(x, s, k, lanes=16, count=K - k) * scale
            store(y, s, k, value * load(weight, k, lanes=16, count=K - k), count=K - k)
