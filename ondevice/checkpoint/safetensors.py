"""Reading safetensors files, which come from strangers.

A file is u64 n, n bytes of JSON (name -> dtype, shape, data_offsets), then the data. Nothing in it
is believed before it is checked, and data is read by `pread` in blocks that the caller chooses: a
mapping's touched pages would count as resident memory, so the build maps nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ondevice.dtypes import DType, bf16, boolean, f16, f32, i8, i16, i32, i64, u8, u16, u32
from ondevice.errors import CheckpointError

F32Array = npt.NDArray[np.float32]

WIDENED = 1 << 18  # elements at once: they stay in the cache between being read and being widened
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

# Integer tensors only occur as buffers that a WeightMap ignores; reading rows of them is an error.
ELEMENT_TYPES: dict[str, DType] = {
    "F32": f32,
    "F16": f16,
    "BF16": bf16,
    "I8": i8,
    "I16": i16,
    "I32": i32,
    "I64": i64,
    "U8": u8,
    "U16": u16,
    "U32": u32,
    "BOOL": boolean,
}

PLAIN_NAME = re.compile(r"[\w.+-]{1,200}")
ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of an open file; `offset` is in bytes from the start of the file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    fd: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.bytes

    def read_bytes(self, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of the tensor as they lie in the file."""
        if not 0 <= begin <= end <= self.size_bytes:
            raise IndexError(f"bytes {begin}..{end} of {self.name!r} with {self.size_bytes}")
        buffer = bytearray(end - begin)
        self._read_into(memoryview(buffer), begin)
        return bytes(buffer)

    def read_rows(self, begin: int, end: int, out: F32Array | None = None) -> F32Array:
        """Rows [begin, end) along the first dim as f32[end - begin, ...].

        f16 and bf16 are widened exactly. `out`, where given, is contiguous, of that shape, and is
        filled and returned, so that a loop over blocks needs one buffer. Raises CheckpointError
        where the file ends early or the elements are not floats.
        """
        if not self.shape or not 0 <= begin <= end <= self.shape[0]:
            raise IndexError(f"rows {begin}..{end} of {self.name!r} {list(self.shape)}")
        shape = (end - begin, *self.shape[1:])
        if out is None:
            out = np.empty(shape, np.float32)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous float32 of shape {shape}")
        row_bytes = math.prod(self.shape[1:]) * self.dtype.bytes
        if self.dtype == f32:
            self._read_array(out, begin * row_bytes)
        elif self.dtype in (f16, bf16):
            flat = out.reshape(-1)
            halves = np.empty(min(flat.size, WIDENED), np.uint16)
            for first in range(0, flat.size, WIDENED):
                part = halves[: flat.size - first]
                self._read_array(part, begin * row_bytes + first * part.itemsize)
                widen(part, self.dtype, flat[first : first + part.size])
        else:
            raise CheckpointError(
                f"{self.file}: {self.name!r} is {self.dtype}; weights must be f32, f16 or bf16"
            )
        return out

    def _read_array(self, array: npt.NDArray[Any], begin: int) -> None:
        if array.size:  # an empty array's memory cannot be viewed as bytes
            self._read_into(array.data.cast("B"), begin)

    def _read_into(self, view: memoryview, begin: int) -> None:
        """Fill `view` from byte `begin` of the tensor; the kernel may return less than asked."""
        position = self.offset + begin
        while view:
            count = os.preadv(self.fd, [view], position)
            if count == 0:
                raise CheckpointError(f"{self.file} became shorter while it was read")
            view, position = view[count:], position + count


def widen(halves: npt.NDArray[np.uint16], dtype: DType, out: F32Array) -> None:
    """The bits of f16 or bf16 elements -> f32. bf16 is the upper half of an f32."""
    if dtype == bf16:
        np.left_shift(halves, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = halves.view(np.float16)


def open_file(path: Path) -> dict[str, TensorInfo]:
    """Open one file and return its checked directory; every tensor holds the open descriptor.

    Close it with `close_files`. Raises CheckpointError, and then leaves nothing open.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        return {tensor.name: tensor for tensor in _directory(path, fd)}
    except BaseException:
        os.close(fd)
        raise


def open_sharded(index: Path) -> dict[str, TensorInfo]:
    """Open every file that `model.safetensors.index.json` names.

    Raises CheckpointError where a shard is missing, or where a tensor is not in the file that the
    index names, or is in a file without being listed for it.
    """
    weight_map = _weight_map(index)
    opened: list[TensorInfo] = []
    try:
        for shard in sorted(set(weight_map.values())):
            path = index.parent / shard
            if not path.is_file():
                _refuse(index, f"the index names {shard}, which is missing; download it")
            found = open_file(path)
            listed = {name for name, file in weight_map.items() if file == shard}
            opened += found.values()
            for name in sorted(listed ^ found.keys()):
                where = "lacks" if name in listed else "holds"
                _refuse(index, f"{shard} {where} {name!r}, against the index; download both again")
    except BaseException:
        close_files(opened)
        raise
    return {tensor.name: tensor for tensor in opened}


def shards_of(index: Path) -> list[str]:
    """The files that a `model.safetensors.index.json` names. Raises CheckpointError."""
    return sorted(set(_weight_map(index).values()))


def close_files(tensors: Iterable[TensorInfo]) -> None:
    """Close the descriptors behind these tensors, each once."""
    for fd in {tensor.fd for tensor in tensors}:
        os.close(fd)


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: {what}")


def _directory(path: Path, fd: int) -> Iterator[TensorInfo]:
    """The tensors of an open file, after checking that they tile its data exactly."""
    file_bytes = os.fstat(fd).st_size
    header, data_start = _header(path, fd, file_bytes)
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(path, name, entry)
        ranges.append((begin, end, name))
        yield TensorInfo(name, dtype, shape, path, data_start + begin, fd)
    if not ranges:
        _refuse(path, "the file holds no tensor; download it again")
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            problem = "overlaps another tensor" if begin < position else "follows a gap"
            _refuse(path, f"the data of {name!r} {problem}; the file is damaged, download it again")
        position = end
    if data_start + position != file_bytes:
        _refuse(
            path,
            f"the file has {file_bytes} bytes but its tensors end at {data_start + position}; "
            "download it again",
        )


def _header(path: Path, fd: int, file_bytes: int) -> tuple[dict[str, Any], int]:
    """(name -> unchecked entry, offset of the data)."""
    prefix = os.pread(fd, 8, 0)
    if len(prefix) < 8:
        _refuse(path, "the file is too short to be a safetensors file; download it again")
    (size,) = struct.unpack("<Q", prefix)
    if size > MAX_HEADER_BYTES or 8 + size > file_bytes:
        _refuse(
            path,
            f"the file announces a header of {size} bytes but has {file_bytes}; it is truncated "
            "or no safetensors file, download it again",
        )
    header = parse_json(path, os.pread(fd, size, 8))
    return header, 8 + size


def _entry(path: Path, name: str, entry: Any) -> tuple[DType, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one directory entry, bytes relative to the data."""
    if not isinstance(entry, dict) or entry.keys() != ENTRY_KEYS:
        _refuse(path, f"{name!r} must have exactly dtype, shape and data_offsets")
    dtype = ELEMENT_TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        known = ", ".join(ELEMENT_TYPES)
        _refuse(path, f"{name!r} has elements of type {entry['dtype']!r}; known are {known}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        _refuse(path, f"{name!r} has the malformed shape {shape!r} or data_offsets {offsets!r}")
    begin, end = offsets
    size = math.prod(shape) * dtype.bytes
    if end - begin != size:
        _refuse(path, f"{name!r} {shape} of {dtype} needs {size} bytes, not {end - begin}")
    return dtype, tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    # `type(...) is int` on purpose: JSON's true is an int to isinstance.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = parse_json(index, index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, 'the file has no "weight_map"; download it again')
    for name, shard in weight_map.items():
        # A shard must be a plain file name: an index must not reach outside its directory.
        if not isinstance(shard, str) or shard in (".", "..") or not PLAIN_NAME.fullmatch(shard):
            _refuse(
                index,
                f"the index names the file {shard!r} for {name!r}, which is no plain file name",
            )
    return weight_map


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 without duplicate keys; CheckpointError otherwise."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!r} occurs twice")
        return parsed

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"the file is not valid JSON ({error}); download it again")
    if not isinstance(parsed, dict):
        _refuse(path, "the file must hold a JSON object; download it again")
    return parsed
