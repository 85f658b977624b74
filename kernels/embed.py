"""Rows picked by number: token embeddings, and the rows whose logits are wanted."""

from __future__ import annotations

from ondevice.kernels.groups import codes_at, scales_at
from ondevice.lang import (
    DType,
    cast,
    ceildiv,
    f16,
    f32,
    fma,
    i32,
    index,
    inline,
    kernel,
    load,
    parallel,
    store,
    u8,
)


@kernel
def embed_float(tokens: i32[S], table: W[NB, K, 16], y: f32[S, K], *, W: DType):
    """y[s, k] = table[tokens[s], k], the table stored in blocks of 16 rows"""
    for s in parallel(S):
        token = index(tokens[s])
        for k in range(K):
            y[s, k] = cast(f32, table[token // 16, k, token % 16])


@inline
def code_of(table, b, row, at, k, *, bits: int):
    """The code of one element: row `row` of block b, element k of the group at `at`"""
    if bits == 4:
        code = cast(i32, table[b, at + k % 16 // 4 * 64 + row * 4 + k % 4])
        code = (code >> cast(i32, k // 16 * 4)) & 15
    else:
        code = cast(i32, table[b, at + k // 4 * 64 + row * 4 + k % 4])
    return code


@kernel
def embed_int(
    tokens: i32[S], table: u8[NB, ROW], y: f32[S, K], *, bits: int, zero: int, affine: bool
):
    """y[s, k] = table[tokens[s], k], the table stored in groups of integers"""
    for s in parallel(S):
        token = index(tokens[s])
        b = token // 16
        row = token % 16
        unit = load(table, b, row * 4, lanes=1, as_=f32)
        for g in range(ceildiv(K, 32)):
            at = codes_at(g, bits=bits, affine=affine)
            tail = scales_at(g, bits=bits, affine=affine)
            least = cast(f32, 0.0)
            if affine:
                scale = unit * cast(f32, cast(i32, table[b, tail + row]))
                floor_unit = load(table, b, 64 + row * 4, lanes=1, as_=f32)
                least = floor_unit * cast(f32, cast(i32, table[b, tail + 16 + row]))
            else:
                scale = unit * cast(f32, load(table, b, tail + row * 2, lanes=1, as_=f16))
            for k in range(min(32, K - g * 32)):
                code = code_of(table, b, row, at, k, bits=bits)
                y[s, g * 32 + k] = fma(cast(f32, code - zero), scale, -least)


@kernel
def select_rows(x: f32[S, K], rows: i32[L], y: f32[L, K]):
    """y[l, k] = x[rows[l], k]"""
    for l in parallel(L):
        row = index(rows[l])
        for k in range(0, K, 16):
            store(y, l, k, load(x, row, k, lanes=16, count=K - k), count=K - k)
