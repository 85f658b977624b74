"""Rows picked by number: token embeddings, and the rows whose logits are wanted."""

from __future__ import annotations

from ondevice.kernels.sections import codes_at, section_at
from ondevice.lang import (
    DType,
    cast,
    ceildiv,
    f32,
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
    """The code of one element: row `row` of block b, element k of the half of a group at `at`"""
    if bits == 4:
        code = cast(i32, table[b, at + k % 16 // 4 * 64 + row * 4 + k % 4])
        code = (code >> cast(i32, k // 16 * 4)) & 15
    else:
        code = cast(i32, table[b, at + k // 4 * 64 + row * 4 + k % 4])
    return code


@kernel
def embed_int(tokens: i32[S], table: u8[NB, ROW], y: f32[S, K], *, bits: int, minima: bool):
    """y[s, k] = table[tokens[s], k], the table stored in sections of integers"""
    for s in parallel(S):
        token = index(tokens[s])
        b = token // 16
        row = token % 16
        for half in range(ceildiv(K, 32)):
            section = half // 8
            top = section_at(section, bits=bits, minima=minima)
            unit = load(table, b, top + row * 4, lanes=1, as_=f32)
            scale = cast(i32, 1)
            minimum = cast(i32, 128)
            if bits == 4 and minima:
                byte = cast(i32, table[b, top + 64 + half % 8 // 2 * 16 + row])
                scale = ((byte >> cast(i32, half % 2 * 4)) & 15) + 1
                minimum = cast(i32, table[b, top + 128 + half % 8 * 16 + row])
            if bits == 4 and not minima:
                byte = cast(i32, table[b, top + 64 + half % 8 * 16 + row])
                scale = (byte & 15) + 1
                minimum = scale * (byte >> 4)
            at = codes_at(section, half % 8 // 2, bits=bits, minima=minima)
            at = at + half % 2 * (64 * bits)
            for k in range(min(32, K - half * 32)):
                code = code_of(table, b, row, at, k, bits=bits)
                y[s, half * 32 + k] = cast(f32, code * scale - minimum) * unit


@kernel
def select_rows(x: f32[S, K], rows: i32[L], y: f32[L, K]):
    """y[l, k] = x[rows[l], k]"""
    for l in parallel(L):
        row = index(rows[l])
        for k in range(0, K, 16):
            store(y, l, k, load(x, row, k, lanes=16, count=K - k), count=K - k)
