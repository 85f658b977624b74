"""The pool of KV blocks as a tensor: its type, and what its elements stand for, in NumPy.

A tile is what a block has of one layer, of keys or of values, and of one KV head: keys as [D][32],
values as [32][D]. As int8, each of its 32 tokens has a float32 scale, max|x| / 127 over the head,
and the scales follow the codes (`bundle.program.kv_tile_elements`).
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
    if not 0 <= layer < layers:
        raise GraphError(f"layer {layer} does not exist in {kv}")
    return kv_heads, head_dim


def pool_head_dim(kv: Array) -> int:
    """D of a pool."""
    tile = int(kv.shape[4])
    return (tile - (KV_SCALE_BYTES if kv.dtype == np.int8 else 0)) // KV_BLOCK_TOKENS


def read_pool(kv: Array, layer: int) -> tuple[Array, Array]:
    """What a layer of the pool stands for: keys f32[P, G, D, 32] and values f32[P, G, 32, D]."""
    keys, values = _views(kv, layer)
    if kv.dtype != np.int8:
        return keys.astype(np.float32), values.astype(np.float32)
    key_scales, value_scales = _scales(kv, layer)
    return keys * key_scales[:, :, None, :], values * value_scales[:, :, :, None]


def write_token(kv: Array, layer: int, block: int, token: int, key: Array, value: Array) -> None:
    """Put key and value f32[G, D] at a token of a block."""
    keys, values = _views(kv, layer)
    if kv.dtype == np.int8:
        key_scales, value_scales = _scales(kv, layer)
        key, key_scales[block, :, token] = encode_heads(key)
        value, value_scales[block, :, token] = encode_heads(value)
    keys[block, :, :, token] = key
    values[block, :, token, :] = value


def encode_heads(rows: Array) -> tuple[Array, Array]:
    """(int8 codes [G, D], scales f32[G]) of f32[G, D]."""
    top = np.abs(rows).max(axis=-1)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 1e-30)
    return np.rint(rows * inverse[:, None]).astype(np.int8), top / np.float32(127)


def _views(kv: Array, layer: int) -> tuple[Array, Array]:
    """Views of a layer's codes or floats: keys [P, G, D, 32] and values [P, G, 32, D]."""
    blocks, _, _, kv_heads, _ = kv.shape
    head_dim = pool_head_dim(kv)
    stored = kv[:, layer, :, :, : head_dim * KV_BLOCK_TOKENS]
    keys = stored[:, 0].reshape(blocks, kv_heads, head_dim, KV_BLOCK_TOKENS)
    values = stored[:, 1].reshape(blocks, kv_heads, KV_BLOCK_TOKENS, head_dim)
    return keys, values


def _scales(kv: Array, layer: int) -> tuple[Array, Array]:
    """Views of a layer's scales, of keys and of values: f32[P, G, 32]."""
    scales = kv[:, layer, ..., -KV_SCALE_BYTES:].view(np.float32)
    return scales[:, 0], scales[:, 1]
