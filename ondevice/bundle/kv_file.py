"""The header of a saved conversation, as `native/kv_file.c` writes it."""

from __future__ import annotations

import struct
from pathlib import Path

from ondevice.bundle.descriptor import KV_FILE_HEADER_BYTES, KV_FILE_MAGIC
from ondevice.errors import BundleError

_BOUND = slice(16, 56)  # abi_hash and identity
_WORD = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15
_LANES = 8


def rebind(path: Path, abi_hash: str, identity: str) -> None:
    """Make a saved conversation one of another build of the same model, over the same weights.

    Keys and values have the same bits on every target, so those that were computed here are those
    of a bundle for a phone. `abi_hash` and `identity` are that bundle's, in hex digits.
    """
    with path.open("r+b") as file:
        header = bytearray(file.read(KV_FILE_HEADER_BYTES))
        if len(header) < KV_FILE_HEADER_BYTES or not header.startswith(KV_FILE_MAGIC):
            raise BundleError(f"{path} is not a saved conversation")
        header[_BOUND] = bytes.fromhex(abi_hash + identity)
        header[-8:] = bytes(8)
        header[-8:] = struct.pack("<Q", checksum(bytes(header)))
        file.seek(0)
        file.write(header)


def checksum(data: bytes) -> int:
    """The runtime's checksum of `data`, a multiple of 64 bytes (slow: for headers)."""
    lanes = [0] * _LANES
    for words in struct.iter_unpack(f"<{_LANES}Q", data):
        lanes = [_fold(lane, word) for lane, word in zip(lanes, words, strict=True)]
    whole = 0
    for lane in lanes:
        whole = _fold(whole, lane)
    return whole ^ whole >> 32


def _fold(lane: int, word: int) -> int:
    lane ^= word
    return ((lane << 29 | lane >> 35) & _WORD) * _FACTOR & _WORD
