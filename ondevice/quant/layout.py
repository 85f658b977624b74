"""What the bytes of a packed matrix mean, in NumPy. Compiled packers are tested against this.

`rows16`: [N/16][K][16] floats; one vector load is one k of 16 rows.

`groups16`: for 16 rows a header of 16 f32 row scales (affine: and 16 f32 row minima), then pairs of
groups of 32 k: the codes of both, then the scales of both (16 f16, or affine 16 u8 scales and 16 u8
minima), so that codes lie at multiples of 64 bytes. An odd last group is followed by an empty one.
Codes of 8 bits: [8 quads][16 rows][4 k] bytes. Codes of 4 bits: [4 quads][16 rows][4 k] bytes whose
low halves are quads 0..3 and whose high halves are quads 4..7.

    symmetric:  row_scale * group_scale * (code - zero)
    affine:     row_scale * group_scale * code - row_minimum * group_minimum
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.quant.scheme import ROW_BLOCK, SCALE_BYTES, Scheme

Array = npt.NDArray[Any]


def pack_floats(values: Array, scheme: Scheme) -> bytes:
    """f32 [N, K] -> `rows16` bytes, missing rows zero."""
    rows, columns = values.shape
    blocks = -(-rows // ROW_BLOCK)
    padded = np.zeros((blocks * ROW_BLOCK, columns), scheme.dtype.np)
    padded[:rows] = values
    return padded.reshape(blocks, ROW_BLOCK, columns).transpose(0, 2, 1).tobytes()


def unpack(packed: bytes, scheme: Scheme, rows: int, columns: int) -> Array:
    """The values that packed bytes stand for: f32 [rows, columns]."""
    data = np.frombuffer(packed, scheme.dtype.np).reshape(scheme.packed_shape(rows, columns))
    if scheme.group_size:
        values = _unpack_groups(data, scheme)
    else:
        values = data.transpose(0, 2, 1).reshape(-1, columns)
    return np.ascontiguousarray(values[:rows, :columns], np.float32)


def _unpack_groups(data: Array, scheme: Scheme) -> Array:
    """[blocks, bytes] -> f32 [16 * blocks, columns padded to groups]."""
    blocks, header = len(data), scheme.header_bytes
    units = data[:, :header].copy().view(np.float32).reshape(blocks, -1, ROW_BLOCK, 1, 1)
    codes_end = 2 * scheme.code_bytes
    pairs = data[:, header:].reshape(blocks, -1, codes_end + 2 * SCALE_BYTES)
    quads = pairs[..., :codes_end].reshape(blocks, 2 * pairs.shape[1], -1, ROW_BLOCK, 4)
    if scheme.bits == 4:
        quads = np.concatenate([quads & 15, quads >> 4], axis=2)
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(blocks, ROW_BLOCK, -1, scheme.group_size)
    tail = pairs[..., codes_end:].copy().reshape(blocks, -1, SCALE_BYTES)
    if scheme.zero_point:
        scales, minima = (
            part.transpose(0, 2, 1)[..., None].astype(np.float32)
            for part in (tail[..., :ROW_BLOCK], tail[..., ROW_BLOCK:])
        )
        values = units[:, 0] * scales * codes - units[:, 1] * minima
    else:
        scales = tail.view(np.float16).transpose(0, 2, 1)[..., None].astype(np.float32)
        values = units[:, 0] * scales * (codes.astype(np.float32) - scheme.zero)
    return values.reshape(blocks * ROW_BLOCK, -1)


def squared_error(values: Array, packed: bytes, scheme: Scheme) -> tuple[float, float]:
    """(sum of (values - unpacked)^2, sum of values^2) of f32 [N, K] and its packed bytes."""
    lost = unpack(packed, scheme, *values.shape) - values
    return float(np.vdot(lost, lost)), float(np.vdot(values, values))
