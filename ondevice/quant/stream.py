"""Weights from the checkpoint to the bundle, a block of rows at a time."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from ondevice.bundle.program import WeightEntry
from ondevice.dtypes import f32
from ondevice.quant.layout import Array
from ondevice.quant.policy import aligned
from ondevice.quant.report import QuantReport
from ondevice.quant.scheme import PLAIN, ROW_BLOCK, SCHEMES, Scheme

BLOCK_BYTES = 4 << 20  # of f32 values held at once: peak memory is a few of these
T = TypeVar("T")
EXACT = (0.0, 0.0)  # squares of what keeps every bit: there is nothing to measure


class Tensor(Protocol):
    """What a checkpoint offers of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read_rows(self, begin: int, end: int, out: Array | None = None) -> Array:
        """f32 rows [begin, end); `out` may be filled with them, where given."""
        ...


class Packer(Protocol):
    """What turns rows into bytes, for several threads at once."""

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
    threads: int = 0,
) -> Generator[bytes]:
    """The bytes of the weights file's data, in order; zeros between tensors keep them 64-aligned.

    `tensors` maps our names to the checkpoint's tensors; `report` receives what each lost. The
    bytes before `begin` are left out; tensors that end there and are known to the report are not
    even read. `threads` (0: one for each core) read and pack blocks ahead of the caller; the bytes
    do not depend on how many there are. Raises CheckpointError while reading.
    """
    threads = threads or os.cpu_count() or 1
    done = {e.name for e in entries if _end(e) <= begin and report.knows(e)}
    pool, rooms = ThreadPoolExecutor(threads), threading.local()
    try:
        started = (
            pool.submit(_packed, entry, rows, tensors[entry.name], packer, rooms)
            for entry in entries
            if entry.name not in done
            for rows in _blocks(entry)
        )
        pieces = _ahead(started, 2 * threads)
        for entry in entries:
            if entry.name in done:
                report.recall(entry)
                continue
            written = 0
            error = power = 0.0
            for _ in _blocks(entry):
                piece, squares = next(pieces).result()
                error, power = error + squares[0], power + squares[1]
                yield piece[max(0, begin - entry.offset - written) :]
                written += len(piece)
            assert written == entry.size_bytes, f"{entry.name}: {written} of {entry.size_bytes}"
            report.add(entry, error, power)
            padding = bytes(aligned(written) - written)
            yield padding[max(0, begin - entry.offset - written) :]
    finally:
        pool.shutdown(cancel_futures=True)


def _end(entry: WeightEntry) -> int:
    return aligned(entry.offset + entry.size_bytes)


def _ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The items, each drawn `count` before it is handed on."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _blocks(entry: WeightEntry) -> Iterator[range]:
    """Rows that are read and packed at once."""
    rows = entry.shape[0]
    step = rows
    if entry.scheme != PLAIN:
        step = max(1, BLOCK_BYTES // (4 * entry.shape[1] * ROW_BLOCK)) * ROW_BLOCK
    return (range(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def _packed(
    entry: WeightEntry, rows: range, tensor: Tensor, packer: Packer, rooms: threading.local
) -> tuple[bytes, tuple[float, float]]:
    """A block packed, with its squared error and the square of what it was.

    `rooms` holds memory for the floats of each thread's block: to get it anew from the system for
    each block takes as long as to pack it.
    """
    shape = (len(rows), *entry.shape[1:])
    size = math.prod(shape)
    room: Array | None = getattr(rooms, "floats", None)
    if room is None or room.size < size:
        room = rooms.floats = np.empty(max(size, BLOCK_BYTES // 4), np.float32)
    values = tensor.read_rows(rows.start, rows.stop, room[:size].reshape(shape))
    if entry.scheme == PLAIN:
        return np.ascontiguousarray(values, np.float32).tobytes(), EXACT
    scheme = SCHEMES[entry.scheme]
    packed = packer.pack(values, scheme)
    exact = scheme.dtype == f32
    return packed, EXACT if exact else packer.squared_error(values, packed, scheme)
