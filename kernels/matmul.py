"""Matrix products with weights in blocks of 16 rows, `w[block, k, row]`.

One lane is one output row, and every output is summed along k in order by a single accumulator. So
gemv and gemm give the same bits for the same row, whatever the tile and however many tokens.
"""

from __future__ import annotations

from ondevice.lang import (
    DType,
    Inline,
    cast,
    ceildiv,
    f32,
    fma,
    kernel,
    load,
    parallel,
    registers,
    scratch,
    store,
    unroll,
    vec,
)


@kernel
def matmul_float(
    x: f32[S, K],
    w: W[NB, K, 16],
    y: f32[S, N],
    *,
    W: DType,
    prologue: Inline,
    epilogue: Inline,
    staged: bool,
    tokens: int,
    blocks: int,
):
    """y[s, n] = epilogue(sum_k prologue(x[s, k]) * w[n, k]), tile = tokens x (16 * blocks) outputs

    With `staged`, the tile's rows pass through the prologue once, into worker scratch.
    """
    rows = scratch(f32, tokens, ceildiv(K, 16) * 16)
    for b, t in parallel(ceildiv(NB, blocks), ceildiv(S, tokens)):
        if staged:
            for m in unroll(tokens):
                s = min(t * tokens + m, S - 1)
                for k in range(0, K, 16):
                    value = load(x, s, k, lanes=16, count=K - k)
                    store(rows, m, k, prologue(value, s, k, K - k))
        acc = registers(vec(0.0, 16), tokens, blocks)
        for k in range(K):
            for r in unroll(blocks):
                weight = cast(f32, load(w, min(b * blocks + r, NB - 1), k, 0, lanes=16))
                for m in unroll(tokens):
                    value = rows[m, k] if staged else x[min(t * tokens + m, S - 1), k]
                    acc[m, r] = fma(vec(value, 16), weight, acc[m, r])
        for m in unroll(tokens):
            for r in unroll(blocks):
                s = t * tokens + m
                n = (b * blocks + r) * 16
                if s < S and n < N:
                    store(y, s, n, epilogue(acc[m, r], s, n, N - n), count=N - n)
