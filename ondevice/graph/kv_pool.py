"""The pool of KV blocks as a tensor: its type, and what its elements stand for, in NumPy.

A tile is what a block has of one layer, of keys or of values, and of one KV head: keys as [D][32],
values as [32][D]. As int8, where sums of products of four bytes are wanted, keys are
[2][D / 4][16][4], halves of 16 tokens with four elements of each, and values [8][D][4], with four
tokens' element; each of the 32 tokens has a float32 scale, max|x| / 127 over the head, and the
scales follow the codes (`bundle.program.kv_tile_elements`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.bundle.program import KV_BLOCK_TOKENS, KV_SCALE_BYTES, kv_tile_elements
from ondevice.dtypes import DType, f32, i8
from ondevice.errors import GraphError
from ondevice.graph.graph import TensorType

Array = npt.NDArray[Any]


def kv_type(layers: int, kv_heads: int, head_dim: int, dtype: DType = f32) -> TensorType:
    """The type of the pool: `dtype[P, layers, 2, kv_heads, elements of a tile]`."""
    return TensorType.of(dtype, "P", layers, 2, kv_heads, kv_tile_elements(head_dim, dtype))


def kv_sizes(kv: TensorType, layer: int) -> tuple[int, int]:
    """(G, D) of a pool. Raises GraphError where it is none or lacks the layer."""
    if (kv.dtype.kind != "float" and kv.dtype != i8) or len(kv.shape) != 5:
        raise GraphError(f"kv must be floats or int8 of rank 5, not {kv}")
    _, layers, pair, kv_heads, tile = (size.static for size in kv.shape)
    scales = KV_SCALE_BYTES if kv.dtype == i8 else 0
    head_dim, rest = divmod((tile or 0) - scales, KV_BLOCK_TOKENS)
    if not layers or pair != 2 or not kv_heads or head_dim < 1 or rest:
        wanted = "head_dim * 32 + 128" if scales else "head_dim * 32"
        raise GraphError(f"kv must be [P, layers, 2, kv_heads, {wanted}], not {kv}")
    if scales and head_dim % 4:
        raise GraphError(f"int8 keys and values need a head_dim in fours, not {head_dim}: take f16")
    if not 0 <= layer < layers:
        raise GraphError(f"layer {layer} does not exist in {kv}")
    return kv_heads, head_dim


def pool_head_dim(kv: Array) -> int:
    """D of a pool."""
    tile = int(kv.shape[4])
    return (tile - (KV_SCALE_BYTES if kv.dtype == np.int8 else 0)) // KV_BLOCK_TOKENS


def write_token(kv: Array, layer: int, block: int, token: int, key: Array, value: Array) -> None:
    """Put key and value f32[G, D] at a token of a block."""
    keys, values = _views(kv, layer)
    if kv.dtype == np.int8:
        key_scales, value_scales = _scales(kv, layer)
        key, key_scales[block, :, token] = encode_heads(key)
        value, value_scales[block, :, token] = encode_heads(value)
        half, lane = divmod(token, 16)
        keys[block, :, :, :, half, lane] = key.reshape(len(key), -1, 4)
        values[block, :, token // 4, token % 4] = value
    else:
        keys[block, :, :, token] = key
        values[block, :, token, :] = value


def encode_heads(rows: Array) -> tuple[Array, Array]:
    """(int8 codes [G, D], scales f32[G]) of f32[G, D]."""
    top = np.abs(rows).max(axis=-1)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 1e-30)
    return np.rint(rows * inverse[:, None]).astype(np.int8), top / np.float32(127)


def _views(kv: Array, layer: int) -> tuple[Array, Array]:
    """Views of a layer's codes or floats: keys [P, G, D, 32] and values [P, G, 32, D].

    Of int8 keys [P, G, D / 4, 4, 2, 16] and values [P, G, 8, 4, D], which hold these in that order.
    """
    blocks, _, _, kv_heads, _ = kv.shape
    head_dim = pool_head_dim(kv)
    stored = kv[:, layer, :, :, : head_dim * KV_BLOCK_TOKENS]
    if kv.dtype == np.int8:
        keys = stored[:, 0].reshape(blocks, kv_heads, 2, head_dim // 4, 16, 4)
        values = stored[:, 1].reshape(blocks, kv_heads, KV_BLOCK_TOKENS // 4, head_dim, 4)
        return keys.transpose(0, 1, 3, 5, 2, 4), values.transpose(0, 1, 2, 4, 3)
    keys = stored[:, 0].reshape(blocks, kv_heads, head_dim, KV_BLOCK_TOKENS)
    values = stored[:, 1].reshape(blocks, kv_heads, KV_BLOCK_TOKENS, head_dim)
    return keys, values


def _in_order(kv: Array, keys: Array, values: Array) -> tuple[Array, Array]:
    """The views as keys [P, G, D, 32] and values [P, G, 32, D]."""
    outer, head_dim = (len(kv), kv.shape[3]), pool_head_dim(kv)
    return (
        keys.reshape(*outer, head_dim, KV_BLOCK_TOKENS),
        values.reshape(*outer, KV_BLOCK_TOKENS, head_dim),
    )


def _scales(kv: Array, layer: int) -> tuple[Array, Array]:
    """Views of a layer's scales, of keys and of values: f32[P, G, 32]."""
    scales = kv[:, layer, ..., -KV_SCALE_BYTES:].view(np.float32)
    return scales[:, 0], scales[:, 1]


class PoolLayer:
    """What attention reads of one layer of a pool."""

    def __init__(self, kv: Array, layer: int) -> None:
        self.coded = kv.dtype == np.int8
        views = _views(kv, layer)
        self.keys, self.values = (v.astype(np.float32) for v in _in_order(kv, *views))
        if self.coded:
            self.key_scales, self.value_scales = _scales(kv, layer)

    def attend(self, query: Array, g: int, table: Array, cached: Array) -> tuple[Array, Any, Any]:
        """Softmax of a query f32[D] over these positions of a row of the table, not divided yet.

        -> sum of weighted values f32[D], largest score, sum of the weights. Whatever meets int8
        becomes int8 too, under one scale: the query, and the weights times their values' scales.
        """
        blocks, tokens = table[cached // KV_BLOCK_TOKENS], cached % KV_BLOCK_TOKENS
        keys, values = self.keys[blocks, g, :, tokens], self.values[blocks, g, tokens]
        if self.coded:
            codes, unit = encode_heads(query[None])
            scores = (keys @ codes[0].astype(np.float32)) * (
                self.key_scales[blocks, g, tokens] * unit
            )
        else:
            scores = keys @ query
        weights = np.exp(scores - scores.max())
        if self.coded:
            codes, unit = encode_heads((weights * self.value_scales[blocks, g, tokens])[None])
            summed = (codes[0].astype(np.float32) @ values) * unit
        else:
            summed = weights @ values
        return summed, scores.max(), weights.sum()
