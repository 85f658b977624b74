"""Weights from the checkpoint to the bundle, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from ondevice.bundle.program import WeightEntry
from ondevice.dtypes import f32
from ondevice.quant.layout import Array
from ondevice.quant.policy import aligned
from ondevice.quant.report import QuantReport
from ondevice.quant.scheme import PLAIN, ROW_BLOCK, SCHEMES, Scheme

BLOCK_BYTES = 4 << 20  # of f32 values held at once: peak memory is a few of these
EXACT = (0.0, 0.0)  # squares of what keeps every bit: there is nothing to measure


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

    def squared_error(self, values: Array, packed: bytes, scheme: Scheme) -> tuple[float, float]:
        """(sum of (values - unpacked)^2, sum of values^2) of what `pack` made of `values`."""
        ...


def stream(
    entries: tuple[WeightEntry, ...],
    tensors: Mapping[str, Tensor],
    packer: Packer,
    report: QuantReport,
    begin: int = 0,
) -> Iterator[bytes]:
    """The bytes of the weights file's data, in order; zeros between tensors keep them 64-aligned.

    `tensors` maps our names to the checkpoint's tensors; `report` receives what each lost. The
    bytes before `begin` are left out; tensors that end there and are known to the report are not
    even read. Raises CheckpointError while reading.
    """
    for entry in entries:
        if aligned(entry.offset + entry.size_bytes) <= begin and report.recall(entry):
            continue
        tensor = tensors[entry.name]
        written = 0
        error = power = 0.0
        for piece, squares in _pieces(entry, tensor, packer):
            error, power = error + squares[0], power + squares[1]
            yield piece[max(0, begin - entry.offset - written) :]
            written += len(piece)
        assert written == entry.size_bytes, f"{entry.name}: {written} of {entry.size_bytes} bytes"
        report.add(entry, error, power)
        padding = bytes(aligned(written) - written)
        yield padding[max(0, begin - entry.offset - written) :]


def _pieces(
    entry: WeightEntry, tensor: Tensor, packer: Packer
) -> Iterator[tuple[bytes, tuple[float, float]]]:
    """Blocks of rows packed, each with its squared error and the square of what it was."""
    if entry.scheme == PLAIN:
        values = np.ascontiguousarray(tensor.read_rows(0, entry.shape[0]), np.float32)
        yield values.tobytes(), EXACT
        return
    scheme = SCHEMES[entry.scheme]
    rows, columns = entry.shape
    step = max(1, BLOCK_BYTES // (4 * columns * ROW_BLOCK)) * ROW_BLOCK
    for begin in range(0, rows, step):
        values = tensor.read_rows(begin, min(begin + step, rows))
        packed = packer.pack(values, scheme)
        exact = scheme.dtype == f32
        yield packed, EXACT if exact else packer.squared_error(values, packed, scheme)
