"""Elementwise ops: the steps that fill holes of other kernels, and a kernel to run them alone."""

from __future__ import annotations

from ondevice.lang import Inline, ceildiv, f32, inline, kernel, load, parallel, store, vec
from ondevice.lang.math import silu as silu_of


@kernel
def elementwise(x: f32[S, N], y: f32[S, N], *, apply: Inline, width: int):
    """y[s, n] = apply(x[s, n], s, n), `width` elements to a task"""
    for s, b in parallel(S, ceildiv(N, width)):
        for n in range(b * width, min((b + 1) * width, N), 16):
            store(y, s, n, apply(load(x, s, n, lanes=16, count=N - n), s, n, N - n), count=N - n)


@inline
def add(value, s, n, count, other: f32[S, N]):
    return value + load(other, s, n, lanes=16, count=count)


@inline
def mul(value, s, n, count, other: f32[S, N]):
    return value * load(other, s, n, lanes=16, count=count)


@inline
def add_bias(value, s, n, count, bias: f32[N]):
    return value + load(bias, n, lanes=16, count=count)


@inline
def silu(value, s, n, count):
    return silu_of(value)


@inline
def normalize(value, s, n, count, scale: f32[S], weight: f32[N]):
    return value * vec(scale[s], 16) * load(weight, n, lanes=16, count=count)
