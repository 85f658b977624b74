"""Ops of attention over a paged cache: type rules and meanings, rows of OPS.

Shape letters are those of `ops`.
"""

from __future__ import annotations

import numpy as np

from ondevice.bundle.program import KV_BLOCK_TOKENS, KV_SPAN_TOKENS
from ondevice.dims import Extent
from ondevice.dtypes import f32
from ondevice.errors import GraphError
from ondevice.graph import rules
from ondevice.graph.graph import TensorType
from ondevice.graph.kv_pool import Array, PoolLayer, kv_sizes, write_token


def infer_rope(x: TensorType, rope: TensorType, *, heads: int, head_dim: int) -> TensorType:
    rows, features = rules.activation("x", x)
    rules.equal("features of x", features, Extent.of(heads * head_dim))
    rules.equal(
        "shape of the rope table", rules.activation("rope", rope), (rows, Extent.of(head_dim))
    )
    if head_dim % 2:
        raise GraphError(f"rope needs an even head_dim, not {head_dim}")
    return x


def rope(x: Array, rope: Array, *, heads: int, head_dim: int) -> Array:
    """Rotate each head's pairs (i, i + D/2): f32[S, H*D], f32[S, D] -> f32[S, H*D].

    `rope[s]` is cos of D/2 angles, then sin of them. The pairing is Hugging Face's "half-split"
    form of rotary embeddings (arXiv 2104.09864).
    """
    x = x.reshape(len(x), heads, head_dim)
    left, right = np.split(x, 2, axis=-1)
    cos, sin = np.split(rope[:, None, :], 2, axis=-1)
    rotated = np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.reshape(len(x), heads * head_dim)


def check_addressing(
    rows: Extent, positions: TensorType, sequence: TensorType, block_table: TensorType
) -> None:
    rules.equal("length of positions", rules.indices("positions", positions), (rows,))
    rules.equal("length of sequence", rules.indices("sequence", sequence), (rows,))
    rules.indices("block_table", block_table, 2)


def infer_kv_write(
    kv: TensorType,
    k: TensorType,
    v: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    *,
    layer: int,
) -> TensorType:
    kv_heads, head_dim = kv_sizes(kv, layer)
    rows, features = rules.activation("k", k)
    rules.equal("types of k and v", k, v)
    rules.equal("features of k", features, Extent.of(kv_heads * head_dim))
    check_addressing(rows, positions, sequence, block_table)
    return kv


def kv_write(
    kv: Array,
    k: Array,
    v: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    *,
    layer: int,
) -> Array:
    """Store each token's key and value where the block table puts its position.

    kv as `kv_pool` has it, k and v f32[S, G*D], positions and sequence i32[S],
    block_table i32[B, W] -> kv. Token t of a block holds its key's element d at d*32 + t and its
    value's element d at t*D + d.
    """
    kv = kv.copy()
    heads = kv.shape[3]
    for s, position in enumerate(positions):
        block = block_table[sequence[s], position // KV_BLOCK_TOKENS]
        token = position % KV_BLOCK_TOKENS
        write_token(kv, layer, block, token, k[s].reshape(heads, -1), v[s].reshape(heads, -1))
    return kv


def infer_attention(
    q: TensorType,
    kv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> TensorType:
    rows, features = rules.activation("q", q)
    rules.equal("features of q", features, Extent.of(heads * head_dim))
    rules.equal("(kv_heads, head_dim) of kv", kv_sizes(kv, layer), (kv_heads, head_dim))
    if heads % kv_heads:
        raise GraphError(f"{heads} heads cannot share {kv_heads} kv_heads evenly")
    check_addressing(rows, positions, sequence, block_table)
    return q


def attention(
    q: Array,
    kv: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> Array:
    """Causal grouped-query attention (arXiv 2305.13245) of each token to its own conversation.

    The token at position p attends to cached positions 0..p through its row of the block table.
    q f32[S, H*D], kv as `kv_pool` has it, positions and sequence i32[S],
    block_table i32[B, W] -> f32[S, H*D].
    """
    if kv.dtype == np.int8:  # what is int8 under one scale are the spans
        sizes = {"layer": layer, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        parts = attention_parts(q, kv, positions, sequence, block_table, **sizes, scale=scale)
        return attention_joined(
            q, kv, positions, sequence, block_table, parts, **sizes, scale=scale
        )
    q = q.reshape(len(q), heads, head_dim) * np.float32(scale)
    out = np.empty_like(q)
    cache = PoolLayer(kv, layer)
    for s, position in enumerate(positions):
        cached = np.arange(position + 1)
        for head in range(heads):
            g = head // (heads // kv_heads)
            summed, _, total = cache.attend(q[s, head], g, block_table[sequence[s]], cached)
            out[s, head] = summed / total
    return out.reshape(len(q), heads * head_dim)


def infer_attention_parts(
    q: TensorType,
    kv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> TensorType:
    attrs = {"layer": layer, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    infer_attention(q, kv, positions, sequence, block_table, **attrs, scale=scale)
    width = block_table.shape[1].static or 0
    spans = -(-width * KV_BLOCK_TOKENS // KV_SPAN_TOKENS)
    return TensorType.of(f32, q.shape[0], spans * heads * (head_dim + 2))


def attention_parts(
    q: Array,
    kv: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> Array:
    """Attention to each span of 256 positions on its own: f32[S, spans * H * (D + 2)].

    The D values of a span's part are not divided yet; the largest score and the sum of the weights
    follow them (arXiv 2205.14135). Parts of spans that a token does not see are NaN.
    """
    q = q.reshape(len(q), heads, head_dim) * np.float32(scale)
    spans = -(-block_table.shape[1] * KV_BLOCK_TOKENS // KV_SPAN_TOKENS)
    parts = np.full((len(q), spans, heads, head_dim + 2), np.nan, np.float32)
    cache = PoolLayer(kv, layer)
    for s, position in enumerate(positions):
        for span in range(position // KV_SPAN_TOKENS + 1):
            cached = np.arange(span * KV_SPAN_TOKENS, position + 1)[:KV_SPAN_TOKENS]
            for head in range(heads):
                g = head // (heads // kv_heads)
                summed, peak, total = cache.attend(q[s, head], g, block_table[sequence[s]], cached)
                parts[s, span, head] = *summed, peak, total
    return parts.reshape(len(q), -1)


def infer_attention_joined(
    q: TensorType,
    kv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    parts: TensorType,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> TensorType:
    attrs = {"layer": layer, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    whole = infer_attention(q, kv, positions, sequence, block_table, **attrs, scale=scale)
    wanted = infer_attention_parts(q, kv, positions, sequence, block_table, **attrs, scale=scale)
    rules.equal("type of the parts", parts, wanted)
    return whole


def attention_joined(
    q: Array,
    kv: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    parts: Array,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> Array:
    """`attention`, whose kernel may take it from `attention_parts` of the same inputs."""
    rows = len(q)
    parts = parts.reshape(rows, -1, heads, head_dim + 2)
    out = np.empty((rows, heads, head_dim), np.float32)
    for s, position in enumerate(positions):
        seen = parts[s, : position // KV_SPAN_TOKENS + 1]
        weights = np.exp(seen[..., head_dim] - seen[..., head_dim].max(axis=0))
        values = (seen[..., :head_dim] * weights[..., None]).sum(axis=0)
        out[s] = values / (seen[..., head_dim + 1] * weights).sum(axis=0)[:, None]
    return out.reshape(rows, heads * head_dim)
