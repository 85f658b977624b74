"""Rotary position embedding (arXiv 2104.09864), half-split as in transformers."""

from __future__ import annotations

from ondevice.lang import f32, fma, kernel, load, parallel, store


@kernel
def rope(x: f32[S, H, D], angles: f32[S, D], y: f32[S, H, D]):
    """Rotates (x[d], x[d + D/2]) by the angle with cos angles[s, d], sin angles[s, d + D/2]"""
    for s, h in parallel(S, H):
        for d in range(0, D // 2, 16):
            count = D // 2 - d
            a = load(x, s, h, d, lanes=16, count=count)
            b = load(x, s, h, D // 2 + d, lanes=16, count=count)
            c = load(angles, s, d, lanes=16, count=count)
            z = load(angles, s, D // 2 + d, lanes=16, count=count)
            store(y, s, h, d, fma(a, c, -(b * z)), count=count)
            store(y, s, h, D // 2 + d, fma(b, c, a * z), count=count)
