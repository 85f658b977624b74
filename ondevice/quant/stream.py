"""Weights from the checkpoint to the bundle, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from ondevice.bundle.program import WeightEntry
from ondevice.quant.layout import Array
from ondevice.quant.policy import aligned
from ondevice.quant.scheme import PLAIN, ROW_BLOCK, SCHEMES, Scheme

BLOCK_BYTES = 4 << 20  # of f32 values held at once: peak memory is a few of these


class Tensor(Protocol):
    """What a checkpoint offers of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read_rows(self, begin: int, end: int) -> Array:
        """f32 rows [begin, end)."""
        ...


class Packer(Protocol):
    """What turns rows into bytes."""

    def pack(self, values: Array, scheme: Scheme) -> bytes:
        """f32 [N, K] -> packed bytes; N is a multiple of 16, or the block ends its tensor."""
        ...


def stream(
    entries: tuple[WeightEntry, ...], tensors: Mapping[str, Tensor], packer: Packer
) -> Iterator[bytes]:
    """The bytes of the weights file's data, in order; zeros between tensors keep them 64-aligned.

    `tensors` maps our names to the checkpoint's tensors. Raises CheckpointError while reading.
    """
    for entry in entries:
        tensor = tensors[entry.name]
        written = 0
        for piece in _pieces(entry, tensor, packer):
            written += len(piece)
            yield piece
        assert written == entry.size_bytes, f"{entry.name}: {written} of {entry.size_bytes} bytes"
        yield bytes(aligned(written) - written)


def _pieces(entry: WeightEntry, tensor: Tensor, packer: Packer) -> Iterator[bytes]:
    if entry.scheme == PLAIN:
        yield np.ascontiguousarray(tensor.read_rows(0, entry.shape[0]), np.float32).tobytes()
        return
    scheme = SCHEMES[entry.scheme]
    rows, columns = entry.shape
    step = max(1, BLOCK_BYTES // (4 * columns * ROW_BLOCK)) * ROW_BLOCK
    for begin in range(0, rows, step):
        yield packer.pack(tensor.read_rows(begin, min(begin + step, rows)), scheme)
