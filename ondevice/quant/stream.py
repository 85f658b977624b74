"""Weights from the checkpoint to the bundle, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from ondevice.bundle.program import WeightEntry
from ondevice.quant.layout import Array, pack
from ondevice.quant.policy import aligned
from ondevice.quant.scheme import PLAIN, ROW_BLOCK, SCHEMES

BLOCK_BYTES = 4 << 20  # of f32 values held at once: peak memory is a few of these


class Tensor(Protocol):
    """What a checkpoint offers of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read_rows(self, begin: int, end: int) -> Array:
        """f32 rows [begin, end)."""
        ...


def stream(entries: tuple[WeightEntry, ...], tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """The bytes of the weights file's data, in order; zeros between tensors keep them 64-aligned.

    `tensors` maps our names to the checkpoint's tensors. Raises CheckpointError while reading.
    """
    for entry in entries:
        tensor = tensors[entry.name]
        written = 0
        for piece in _pieces(entry, tensor):
            written += len(piece)
            yield piece
        assert written == entry.size_bytes, f"{entry.name}: {written} of {entry.size_bytes} bytes"
        yield bytes(aligned(written) - written)


def _pieces(entry: WeightEntry, tensor: Tensor) -> Iterator[bytes]:
    if entry.scheme == PLAIN:
        yield np.ascontiguousarray(tensor.read_rows(0, entry.shape[0]), np.float32).tobytes()
        return
    scheme = SCHEMES[entry.scheme]
    rows, columns = entry.shape
    step = max(1, BLOCK_BYTES // (4 * columns * ROW_BLOCK)) * ROW_BLOCK
    for begin in range(0, rows, step):
        yield pack(tensor.read_rows(begin, min(begin + step, rows)), scheme)
