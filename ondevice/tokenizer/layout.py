"""The file of a compiled tokenizer: a header, then sections of fixed records, little-endian.

The same layout in C is native/tokenizer_format.h. Offsets count from the start of the file and are
multiples of 8; records refer to each other by index and to text by offset into the TEXT section, so
the file can be mapped anywhere.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

MAGIC = b"ODTOKENS"
VERSION = 1


class Section(IntEnum):
    """In the order of the header."""

    TEXT = 0
    TOKENS = 1
    MERGES = 2
    WORDS = 3
    BYTE_TOKENS = 4
    ADDED = 5
    TRIES = 6
    TRIE_NODES = 7
    TRIE_EDGES = 8
    NORMALIZERS = 9
    STEPS = 10
    AUTOMATA = 11
    TRANSITIONS = 12
    PAGE_INDEX = 13
    PAGES = 14
    PREFIX = 15
    SUFFIX = 16
    DECOMPOSITIONS = 17
    COMPOSITIONS = 18
    CODE_POINTS = 19


class Flag(IntFlag):
    """Of the whole tokenizer."""

    BYTE_LEVEL = 1  # words are bytes, not characters
    BYTE_FALLBACK = 2  # characters without a token become the tokens of their bytes
    FUSE_UNKNOWN = 4
    WHOLE_WORDS = 8  # a word that is a token is that token, whatever the merges say
    DECODE_BYTES = 16


class TokenFlag(IntFlag):
    EXISTS = 1
    SPECIAL = 2
    BYTE = 4  # decoded as one byte among its neighbours


class AddedFlag(IntFlag):
    SINGLE_WORD = 1
    LSTRIP = 2
    RSTRIP = 4
    SPECIAL = 8
    CONTROL = 16  # never found in what a user has typed


class NormalizerKind(IntEnum):
    PREPEND = 0
    REPLACE = 1
    COMPOSE = 2


class StepKind(IntEnum):
    SPLIT = 0
    PREFIX = 1
    REPLACE = 2


class Text:
    """The TEXT section: every distinct piece of text once."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._data = bytearray()

    def add(self, piece: bytes) -> tuple[int, int]:
        """(offset, bytes) of `piece`."""
        if piece not in self._places:
            self._places[piece] = len(self._data)
            self._data += piece
        return self._places[piece], len(piece)

    def data(self) -> bytes:
        return bytes(self._data)


# Fields of the header behind magic, version and flags; see tokenizer_format.h.
_HEADER = struct.Struct("<8sIIQiiIIIIIIIIII")


def write_file(
    *,
    flags: Flag,
    vocab_size: int,
    unknown: int,
    strip: tuple[int, int],
    mark: tuple[int, int],
    probes: tuple[int, int, int],
    word_bytes: int,
    properties: tuple[int, int],
    sections: dict[Section, tuple[bytes, int]],
) -> bytes:
    """The whole file; `sections` are (data, number of records).

    `strip` is (byte, count) that decoding removes from the start; `mark` the (offset, bytes) of the
    text that starts words; `probes` bound the search in the hash tables of merges, words and
    compositions; `properties` are the page maps of composition and of added tokens' flags, or -1.
    """
    table = len(Section) * 16
    start = _HEADER.size + table
    directory, body = bytearray(), bytearray()
    for section in Section:
        data, count = sections.get(section, (b"", 0))
        directory += struct.pack("<QQ", start + len(body), count)
        body += data + bytes(-len(data) % 8)
    header = _HEADER.pack(
        *(MAGIC, VERSION, int(flags), start + len(body), vocab_size, unknown),
        *(*strip, *mark, *probes, word_bytes),
        *(index & 0xFFFFFFFF for index in properties),
    )
    return header + bytes(directory) + bytes(body)


def records(array: NDArray[np.generic]) -> tuple[bytes, int]:
    """A section of the rows of `array`."""
    return np.ascontiguousarray(array).tobytes(), len(array)


# ---- hash tables: open addressing, linear probing, a power of two of slots ----

_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def hash_pair(left: int, right: int) -> int:
    mixed = (left << 32 | right) * _MULTIPLIER & _MASK
    return (mixed ^ mixed >> 32) * _MULTIPLIER & _MASK


def hash_text(text: bytes) -> int:
    """Eight bytes at a time; the last eight overlap where the length is no multiple."""
    value = len(text) * _MULTIPLIER & _MASK
    if len(text) < 8:
        starts = [0] if text else []
    else:
        starts = [*range(0, len(text) - 7, 8), len(text) - 8]
    for start in starts:
        chunk = int.from_bytes(text[start : start + 8], "little")
        value = (value ^ chunk) * _MULTIPLIER & _MASK
        value ^= value >> 32
    return value * _MULTIPLIER & _MASK


def place_all(hashes: list[int]) -> tuple[NDArray[np.int64], int, int]:
    """A hash table over items with these 64-bit hashes.

    Returns (item of each slot or -1, slots, the most slots that a search has to look at).
    """
    bits = max(3, (len(hashes) * 3 // 2).bit_length())
    slots = 1 << bits
    table = np.full(slots, -1, np.int64)
    taken: set[int] = set()
    longest = 1
    for item, value in enumerate(hashes):
        slot, length = value >> (64 - bits), 1
        while slot in taken:
            slot, length = (slot + 1) & (slots - 1), length + 1
        taken.add(slot)
        table[slot] = item
        longest = max(longest, length)
    return table, slots, longest
