"""Ids, texts and pieces of the C tokenizer against the `tokenizers` library.

The full count (100,000 strings for each tokenizer) is `scripts/tokenizer_check.py`.
"""

from __future__ import annotations

import random

import pytest

from .conftest import SHARED, Pair
from .strings import unicode_strings

STRINGS = 1000
FILES = ("wikitext2.test.raw", "tinystories_val_part.txt")


def text_lines() -> list[str]:
    files = [SHARED / "text" / name for name in FILES]
    if not all(f.is_file() for f in files):
        pytest.skip("no texts beside the repository")
    return [line for f in files for line in f.read_text("utf-8").splitlines(keepends=True)]


def test_every_line_of_the_texts(pair: Pair) -> None:
    lines = text_lines()
    expected = pair.library.encode_batch(lines)
    different = [
        line for line, e in zip(lines, expected, strict=True) if pair.native.encode(line) != e.ids
    ]
    assert different == []


def test_generated_unicode(pair: Pair) -> None:
    for text in unicode_strings(1, STRINGS):
        assert pair.native.encode(text) == pair.library.encode(text).ids, repr(text)
        ids = pair.library.encode(text, add_special_tokens=False).ids
        assert pair.native.encode(text, add_special_tokens=False) == ids, repr(text)


def test_decode_of_encoded_and_of_random_tokens(pair: Pair) -> None:
    source = random.Random(2)
    size = pair.library.get_vocab_size()
    for text in unicode_strings(3, STRINGS // 2):
        encoded = pair.library.encode(text).ids
        drawn = [source.randrange(size) for _ in range(source.randrange(12))]
        few = [source.randrange(min(size, 260)) for _ in range(source.randrange(20))]
        for tokens in (encoded, drawn, few):
            for skip in (False, True):
                expected = pair.library.decode(tokens, skip_special_tokens=skip)
                assert pair.native.decode(tokens, skip_special_tokens=skip) == expected, tokens


def test_pieces_of_a_stream_join_to_the_whole(pair: Pair) -> None:
    source = random.Random(4)
    for text in unicode_strings(5, STRINGS // 4):
        tokens = pair.native.encode(text)
        tokens += [source.randrange(pair.native.vocab_size) for _ in range(source.randrange(6))]
        tokens += [source.randrange(min(pair.native.vocab_size, 260)) for _ in range(6)]
        for skip in (False, True):
            stream = pair.native.stream(skip_special_tokens=skip)
            pieces = [stream.add(t) for t in tokens] + [stream.finish()]  # each is valid UTF-8
            assert "".join(pieces) == pair.native.decode(tokens, skip_special_tokens=skip)


def test_a_text_that_continues_keeps_its_leading_space(pair: Pair) -> None:
    tokens = pair.native.encode("Once upon a time", add_special_tokens=False)
    stream = pair.native.stream(continues=True)
    shown = "".join([stream.add(t) for t in tokens] + [stream.finish()])
    assert shown.lstrip(" ") == "Once upon a time"
    assert pair.native.decode(tokens, continues=True) == shown


def test_typed_control_tokens_stay_text(pair: Pair) -> None:
    special = pair.library.get_added_tokens_decoder()
    control = {i for i, token in special.items() if token.special}
    pair.library.encode_special_tokens = True
    try:
        for token in special.values():
            text = f"say {token.content} and{token.content}{token.content[:-1]}"
            ours = pair.native.encode(text, add_special_tokens=False, content=True)
            assert not control & set(ours)
            if all(t.special or t.content not in text for t in special.values()):
                theirs = pair.library.encode(text, add_special_tokens=False).ids
                assert control & set(theirs) or ours == theirs
    finally:
        pair.library.encode_special_tokens = False


def test_long_words_are_not_quadratic(pair: Pair) -> None:
    for text in ("a" * 50_000, "ab" * 30_000, "\u0301" * 20_000, " " * 50_000, "語" * 20_000):
        assert pair.native.encode(text) == pair.library.encode(text).ids
    source = random.Random(6)
    letters = "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=60_000))
    assert pair.native.encode(letters) == pair.library.encode(letters).ids
