"""Layouts in NumPy: what a packed tensor means. Compiled packers are tested against these."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.quant.scheme import ROW_BLOCK, Scheme

Array = npt.NDArray[Any]


def pack(values: Array, scheme: Scheme) -> bytes:
    """f32 [N, K], N a multiple of 16 or the tensor's end -> packed bytes, missing rows zero."""
    rows, columns = values.shape
    blocks = -(-rows // ROW_BLOCK)
    padded = np.zeros((blocks * ROW_BLOCK, columns), scheme.dtype.np)
    padded[:rows] = values
    return padded.reshape(blocks, ROW_BLOCK, columns).transpose(0, 2, 1).tobytes()


def unpack(packed: bytes, scheme: Scheme, rows: int, columns: int) -> Array:
    """The inverse of `pack`: f32 [rows, columns]."""
    blocks = np.frombuffer(packed, scheme.dtype.np).reshape(scheme.packed_shape(rows, columns))
    values = blocks.transpose(0, 2, 1).reshape(-1, columns)[:rows]
    return np.ascontiguousarray(values, np.float32)
