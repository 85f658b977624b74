"""Rows picked by number: token embeddings, and the rows whose logits are wanted."""
# mypy: ignore-errors

from __future__ import annotations

from ondevice.lang import DType, cast, f32, i32, index, kernel, load, parallel, store


@kernel
def embed_float(tokens: i32[S], table: W[NB, K, 16], y: f32[S, K], *, W: DType):
    """y[s, k] = table[tokens[s], k], the table stored in blocks of 16 rows"""
    for s in parallel(S):
        token = index(tokens[s])
        for k in range(K):
            y[s, k] = cast(f32, table[token // 16, k, token % 16])


@kernel
def select_rows(x: f32[S, K], rows: i32[L], y: f32[L, K]):
    """y[l, k] = x[rows[l], k]"""
    for l in parallel(L):
        row = index(rows[l])
        for k in range(0, K, 16):
            store(y, l, k, load(x, row, k, lanes=16, count=K - k), count=K - k)
