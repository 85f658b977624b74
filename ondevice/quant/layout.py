"""What the bytes of a packed matrix mean, in NumPy. Compiled packers are tested against this.

`rows16`: [N/16][K][16] floats; one vector load is one k of 16 rows.

`sections16`: 16 rows in sections of 256 k. A section starts with the rows' units, 16 f32. For codes
of 4 bits a scale for each half of a group of 64 k follows, a whole number from 1 to 16, and a
minimum, from 0 to 128: with minima, for each of 4 groups 16 bytes whose low halves are the scales
less 1 of the first half, and then for each of 8 halves 16 bytes of minima; without, for each of 8
halves 16 bytes whose low half is the scale less 1 and whose high half the code of 0. Then come the
codes of up to 4 groups: of 8 bits, [16 quads][16 rows][4 k] bytes; of 4 bits, for each half [4
quads][16 rows][4 k] bytes whose low halves are quads 0..3 and whose high halves are quads 4..7.

    8 bits:             unit * (code - 128)
    4 bits, minima:     unit * (scale * code - minimum)
    4 bits, no minima:  unit * scale * (code - zero)

What stands behind the unit is an int8, so a matrix unit can multiply it (after QServe, Lin et al.
2024, whose groups are int8 in their rows).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.graph.ops import ACTIVATION_GROUP
from ondevice.quant.scheme import ROW_BLOCK, SECTION, Scheme

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
        values = _unpack_sections(data, scheme)
    else:
        values = data.transpose(0, 2, 1).reshape(-1, columns)
    return np.ascontiguousarray(values[:rows, :columns], np.float32)


def _unpack_sections(data: Array, scheme: Scheme) -> Array:
    """[blocks, bytes] -> f32 [16 * blocks, columns padded to groups]."""
    step = scheme.header_bytes + SECTION // ACTIVATION_GROUP * scheme.code_bytes
    parts = [_unpack_section(data[:, i : i + step], scheme) for i in range(0, data.shape[1], step)]
    return np.concatenate(parts, axis=2).reshape(len(data) * ROW_BLOCK, -1)


def _unpack_section(data: Array, scheme: Scheme) -> Array:
    """[blocks, bytes of a section] -> f32 [blocks, 16, up to 256]."""
    blocks, header = len(data), scheme.header_bytes
    units = data[:, : 4 * ROW_BLOCK].copy().view(np.float32)[..., None, None]
    if scheme.bits == 8:
        codes = data[:, header:].reshape(blocks, -1, ROW_BLOCK, 4).transpose(0, 2, 1, 3)
        return (units * (codes.astype(np.float32) - 128)).reshape(blocks, ROW_BLOCK, -1)
    quads = data[:, header:].reshape(blocks, -1, 4, ROW_BLOCK, 4)
    quads = np.concatenate([quads & 15, quads >> 4], axis=2)
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(blocks, ROW_BLOCK, -1, 32)
    scales, minima = _scales(data[:, 4 * ROW_BLOCK : header], scheme)
    halves = codes.shape[2]
    values = codes.astype(np.float32) * scales[:, :, :halves] - minima[:, :, :halves]
    return (units * values).reshape(blocks, ROW_BLOCK, -1)


def _scales(tail: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Scales and minima [blocks, 16, 8, 1] behind the units of a section."""
    rows = tail.reshape(len(tail), -1, ROW_BLOCK).transpose(0, 2, 1).astype(np.float32)
    if scheme.minima:
        bytes_ = rows[..., :4].astype(np.uint8)
        scales = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(len(tail), ROW_BLOCK, 8)
        return scales[..., None] + np.float32(1), rows[..., 4:, None]
    bytes_ = rows.astype(np.uint8)
    scales = (bytes_ & 15) + np.float32(1)
    return scales[..., None], (scales * (bytes_ >> 4))[..., None]


def squared_error(values: Array, packed: bytes, scheme: Scheme) -> tuple[float, float]:
    """(sum of (values - unpacked)^2, sum of values^2) of f32 [N, K] and its packed bytes."""
    lost = unpack(packed, scheme, *values.shape) - values
    return float(np.vdot(lost, lost)), float(np.vdot(values, values))
