"""Kernels of memory for the tests under qemu."""
# mypy: ignore-errors
# ruff: noqa: F821

from __future__ import annotations

from ondevice.lang import (
    DType,
    f16,
    f32,
    i32,
    kernel,
    load,
    parallel,
    store,
    u8,
    unroll,
    vec,
)

PARTIAL = {"partial_f32": f32, "partial_f16": f16, "partial_i32": i32, "partial_u8": u8}


@kernel
def partial(x: a[R, N], y: a[R, N], *, a: DType):
    """Copies r lanes of each row, from the r-th element on: counts from 23 to 3."""
    for r in parallel(R):
        store(y, r, r, load(x, r, r, lanes=16, count=N - r), count=N - r)


@kernel
def words(x: u8[R, 40], y: i32[R, 10, 16]):
    """y[r, q, :] = the word q of row r"""
    for r in parallel(R):
        for q in unroll(10):
            store(y, r, q, 0, vec(load(x, r, q * 4, lanes=1, as_=i32), 16))
