"""Tables of Unicode's normalization form C, found out by asking the `tokenizers` library.

Three things make the form: how characters decompose, the order that marks take behind a letter, and
which pairs compose. Hangul syllables follow arithmetic and stand in no table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers

from ondevice.tokenizer.charsets import CODE_POINTS

ORDER = 0x3F  # of a mark among marks; 0: a character that starts a new cluster
DECOMPOSES = 0x40
UNSTABLE = 0x80  # form C may change the character, or join it to the one before

_HANGUL = range(0xAC00, 0xAC00 + 11172)
_HANGUL_JOINING = (range(0x1161, 0x1176), range(0x11A8, 0x11C3))
_PROBED = (*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000))
_SEPARATOR = "\n"  # takes part in no composition
_LOWEST_MARK, _HIGHEST_MARK = "\u0334", "\u0345"


@dataclass(frozen=True)
class CompositionTables:
    """`properties[c]`; full decompositions by character; (first, second) -> composed."""

    properties: NDArray[np.uint8]
    decompositions: dict[int, tuple[int, ...]]
    compositions: dict[tuple[int, int], int]


@cache
def probe_compositions() -> CompositionTables:
    decomposed = _decompositions()
    orders = _mark_orders()
    compositions = _compositions(decomposed)
    properties = np.zeros(CODE_POINTS, np.uint8)
    for code, order in orders.items():
        properties[code] = order
    for code in decomposed:
        properties[code] |= DECOMPOSES
    composed = _normalized("NFC", [chr(code) for code in decomposed])
    for code, text in zip(decomposed, composed, strict=True):
        properties[code] |= UNSTABLE if text != chr(code) else 0
    for _, second in compositions:
        properties[second] |= UNSTABLE
    for code in (*orders, *(c for joining in _HANGUL_JOINING for c in joining)):
        properties[code] |= UNSTABLE
    return CompositionTables(properties, decomposed, compositions)


def _normalized(form: str, texts: list[str]) -> list[str]:
    normalizer = {"NFC": normalizers.NFC(), "NFD": normalizers.NFD()}[form]
    return str(normalizer.normalize_str(_SEPARATOR.join(texts))).split(_SEPARATOR)


def _decompositions() -> dict[int, tuple[int, ...]]:
    codes = [code for code in _PROBED if chr(code) != _SEPARATOR and code not in _HANGUL]
    texts = _normalized("NFD", [chr(code) for code in codes])
    return {
        code: tuple(map(ord, text))
        for code, text in zip(codes, texts, strict=True)
        if text != chr(code)
    }


def _mark_orders() -> dict[int, int]:
    """Marks by the order they sort into, from 1: a mark moves before any of a higher order."""
    codes = [code for code in _PROBED if chr(code) != _SEPARATOR]
    behind = [_HIGHEST_MARK + chr(code) for code in codes]  # moves unless its order is the highest
    before = [chr(code) + _LOWEST_MARK for code in codes]  # is overtaken unless it is the lowest
    marks = {ord(_LOWEST_MARK), ord(_HIGHEST_MARK)}
    for pairs in (behind, before):
        # What decomposes comes back as something else, and so is no mark of its own.
        for code, pair, text in zip(codes, pairs, _normalized("NFD", pairs), strict=True):
            if text == pair[::-1] and text != pair:
                marks.add(code)
    orders: list[list[int]] = []  # marks of equal order together, lowest first
    for code in sorted(marks):
        place = next(
            (i for i, known in enumerate(orders) if not _sorts_before(known[0], code)), len(orders)
        )
        if place < len(orders) and not _sorts_before(code, orders[place][0]):
            orders[place].append(code)
        else:
            orders.insert(place, [code])
    return {code: order for order, marks_of in enumerate(orders, 1) for code in marks_of}


@cache
def _sorts_before(first: int, second: int) -> bool:
    """Whether mark `first` has a lower order than `second`."""
    text = chr(second) + chr(first)
    return bool(normalizers.NFD().normalize_str("a" + text) == "a" + text[::-1] and first != second)


def _compositions(decomposed: dict[int, tuple[int, ...]]) -> dict[tuple[int, int], int]:
    codes = [code for code, parts in decomposed.items() if len(parts) > 1]
    beginnings = _normalized("NFC", ["".join(map(chr, decomposed[code][:-1])) for code in codes])
    pairs = [
        (beginning, chr(decomposed[code][-1]), code)
        for code, beginning in zip(codes, beginnings, strict=True)
        if len(beginning) == 1
    ]
    joined = _normalized("NFC", [first + second for first, second, _ in pairs])
    return {
        (ord(first), ord(second)): code
        for (first, second, code), text in zip(pairs, joined, strict=True)
        if text == chr(code)
    }
