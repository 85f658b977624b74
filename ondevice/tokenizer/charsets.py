"""Sets of characters, found out by asking the `tokenizers` library itself.

Every engine has its own edition of Unicode, so a set is never taken from Python: the library's own
pattern is run over the code points, and what it matches is the set. A set is a bool array over all
code points [0x110000].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

CODE_POINTS = 0x110000
_SURROGATES = range(0xD800, 0xE000)
# Planes 4 to 13 and the private planes 15 and 16 hold no character that could differ from its
# neighbours; their ends stand for the whole (a test asks for every code point).
_PROBED = (range(0x40000), range(0xE0000, 0xE1000))
_UNIFORM = (range(0x40000, 0xE0000), range(0xE1000, 0xF0000), range(0xF0000, CODE_POINTS))

CharSet = NDArray[np.bool_]


@cache
def probe_pattern(pattern: str, folded: bool = False) -> CharSet:
    """What one character of the library's regular expression `pattern` matches.

    `folded` ignores case, as in `(?i:s)`.
    """
    letter = pattern.isalpha() and pattern.isascii()
    if len(pattern) == 1 and pattern != "." and not (folded and pattern.isalpha()):
        return _only([pattern])
    if folded and letter:  # one run for all letters, then only what is some letter's other case
        candidates = np.flatnonzero(probe_pattern("(?i:[a-z])")).tolist()
        splitter = pre_tokenizers.Split(Regex(f"(?i:{pattern})"), "removed")
        return _only([chr(c) for c in candidates if not splitter.pre_tokenize_str(chr(c))])
    pattern = f"(?i:{pattern})" if folded else pattern
    return _probe(pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True))


@cache
def probe_numeric() -> CharSet:
    """What the pre-tokenizer Digits calls a digit."""
    pieces = pre_tokenizers.Digits(individual_digits=False)
    return _probe_marked(pieces, "0")


@cache
def probe_punctuation() -> CharSet:
    """What the pre-tokenizer Punctuation splits off."""
    return _probe_marked(pre_tokenizers.Punctuation("contiguous"), "!")


@cache
def probe_space_and_word() -> tuple[CharSet, CharSet]:
    r"""White space and word characters (`\s`, `\w`) as the flags of added tokens know them."""
    splitter = pre_tokenizers.Whitespace()
    space, word = np.ones(CODE_POINTS, np.bool_), np.zeros(CODE_POINTS, np.bool_)
    for points, text in _chunks():
        for piece, (start, end) in splitter.pre_tokenize_str(text):
            chosen = points[start:end]
            space[chosen] = False
            word[chosen] = len(splitter.pre_tokenize_str("a" + piece[0])) == 1
    for uniform in _UNIFORM:
        space[uniform.start : uniform.stop] = space[uniform.start]
        word[uniform.start : uniform.stop] = word[uniform.start]
    space[_SURROGATES.start : _SURROGATES.stop] = False
    return space, word


def _only(characters: list[str]) -> CharSet:
    chosen = np.zeros(CODE_POINTS, np.bool_)
    chosen[[ord(c) for c in characters]] = True
    return chosen


def _chunks() -> list[tuple[NDArray[np.int64], str]]:
    """Code points to ask for, and the same as text."""
    ranges = [*_PROBED, *(range(u.start, u.start + 1) for u in _UNIFORM)]
    points = np.concatenate([np.arange(r.start, r.stop) for r in ranges])
    points = points[(points < _SURROGATES.start) | (points >= _SURROGATES.stop)]
    pieces = np.array_split(points, 8)
    return [(piece, "".join(map(chr, piece.tolist()))) for piece in pieces]


def _fill_uniform(chosen: CharSet) -> CharSet:
    for uniform in _UNIFORM:
        chosen[uniform.start : uniform.stop] = chosen[uniform.start]
    chosen.setflags(write=False)
    return chosen


def _probe(keeps_matches: pre_tokenizers.PreTokenizer) -> CharSet:
    chosen = np.zeros(CODE_POINTS, np.bool_)
    for points, text in _chunks():
        for _, (start, end) in keeps_matches.pre_tokenize_str(text):
            chosen[points[start:end]] = True
    return _fill_uniform(chosen)


def _probe_marked(splitter: pre_tokenizers.PreTokenizer, member: str) -> CharSet:
    """The set of a splitter whose pieces alternate: those that join with `member` belong to it."""
    chosen = np.zeros(CODE_POINTS, np.bool_)
    for points, text in _chunks():
        for piece, (start, end) in splitter.pre_tokenize_str(text):
            chosen[points[start:end]] = len(splitter.pre_tokenize_str(member + piece[0])) == 1
    return _fill_uniform(chosen)


@dataclass(frozen=True)
class Classes:
    """A partition of the characters: those of one class belong to the same sets.

    `of[c]` is the class of code point c; `members[s]` are the classes that set s consists of.
    """

    of: NDArray[np.uint8]
    count: int
    members: tuple[frozenset[int], ...]


def partition(sets: list[CharSet]) -> Classes:
    """The coarsest partition that can tell all `sets` apart. Raises ValueError beyond 64 sets."""
    if len(sets) > 64:
        raise ValueError(f"{len(sets)} sets of characters")
    signatures = np.zeros(CODE_POINTS, np.uint64)
    for bit, chosen in enumerate(sets):
        signatures |= chosen.astype(np.uint64) << np.uint64(bit)
    starts = np.flatnonzero(np.diff(signatures, prepend=~signatures[:1]))  # of runs, which are few
    distinct, run = np.unique(signatures[starts], return_inverse=True)
    of = np.repeat(run, np.diff(starts, append=CODE_POINTS))
    members = tuple(
        frozenset(np.flatnonzero(distinct >> np.uint64(bit) & np.uint64(1)).tolist())
        for bit in range(len(sets))
    )
    return Classes(of.astype(np.uint8), len(distinct), members)


def paged(values: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """`values` [0x110000] as a page number per 256 code points, and the distinct pages [n, 256]."""
    numbers: dict[bytes, int] = {}
    index = [numbers.setdefault(page.tobytes(), len(numbers)) for page in values.reshape(-1, 256)]
    pages = np.frombuffer(b"".join(numbers), np.uint8).reshape(-1, 256)
    return np.array(index, np.uint16), pages
