"""The tokenizer's calls: what they refuse, several threads, handles after their end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.tokenizer import Tokenizer
from ondevice.tokenizer.automaton import build_automaton
from ondevice.tokenizer.charsets import CODE_POINTS, probe_pattern
from ondevice.tokenizer.components import GPT2_PATTERN
from ondevice.tokenizer.regex import parse_regex

from .conftest import BUNDLED, Pair


@pytest.fixture
def story(open_pair: Callable[[Path], Pair]) -> Pair:
    return open_pair(BUNDLED)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"abc\xff", 3),
        (b"\xc3", 0),
        (b"a\xed\xa0\x80", 1),
        (b"\xc0\xaf", 0),
        (b"xy\xf4\x90\x80\x80", 2),
        (b"\xe2\x82", 0),
    ],
)
def test_invalid_utf8(story: Pair, data: bytes, place: int) -> None:
    with pytest.raises(RuntimeFailure, match=f"no UTF-8: its byte {place} ") as error:
        story.native.encode(data)
    assert error.value.status == Status.INVALID


def test_empty_text(story: Pair) -> None:
    assert story.native.encode("") == story.library.encode("").ids == [1]
    assert story.native.encode("", add_special_tokens=False) == []
    assert story.native.decode([]) == ""


def test_a_zero_byte_is_a_character(story: Pair) -> None:
    assert story.native.encode("a\0b") == story.library.encode("a\0b").ids
    assert story.native.decode(story.native.encode("a\0b")) == "a\0b"


@pytest.mark.parametrize("token", [-1, 512, 2**31 - 1, 2**31, 2**40, -(2**31)])
def test_tokens_out_of_range(story: Pair, token: int) -> None:
    with pytest.raises(RuntimeFailure, match="this tokenizer has tokens 0 to 511"):
        story.native.decode([1, token])
    stream = story.native.stream()
    with pytest.raises(RuntimeFailure, match="this tokenizer has tokens 0 to 511"):
        stream.add(max(min(token, 2**31 - 1), -1))
    assert stream.add(403) == story.native.decode([403])  # nothing is lost


def test_a_prompt_of_a_megabyte(story: Pair) -> None:
    for text in ("x" * 1_000_000, "word " * 200_000, "\U0001f600" * 250_000, "\n" * 1_000_000):
        assert story.native.decode(story.native.encode(text)) == text


def test_use_after_close(runtime: Path, story: Pair) -> None:
    native = Tokenizer(runtime, story.data)
    handle, stream = native.handle, native.stream()
    native.close()
    native.close()
    native.handle = handle
    for call in (lambda: native.encode("a"), lambda: native.decode([1]), lambda: stream.add(1)):
        with pytest.raises(RuntimeFailure, match="the tokenizer has been closed") as error:
            call()
        assert error.value.status == Status.CLOSED
    other = Tokenizer(runtime, story.data)  # takes the slot
    with pytest.raises(RuntimeFailure, match="closed"):
        native.encode("a")
    assert other.encode("a") == story.native.encode("a")
    other.close()


def test_damaged_files(runtime: Path, story: Pair) -> None:
    data = story.data
    for bad, words in (
        (data[:100], "not a compiled tokenizer"),
        (data[:-8], "tokenizer of 22"),
        (b"X" + data[1:], "does not start with ODTOKENS"),
        (data[:8] + b"\x09" + data[9:], "version 9"),
        (data[:24] + b"\xff\xff\xff\x7f" + data[28:], "damaged: another number of tokens"),
    ):
        with pytest.raises(RuntimeFailure, match=words) as error:
            Tokenizer(runtime, bad)
        assert error.value.status == Status.MODEL


def test_data_at_any_address(runtime: Path, story: Pair) -> None:
    shifted = np.frombuffer(b"\0" * 3 + story.data, np.uint8)[3:]
    native = Tokenizer(runtime, story.data)
    native.close()
    native.call("tokenizer_open", shifted.ctypes.data, len(shifted), native.handle)
    assert native.encode("Once upon") == story.native.encode("Once upon")
    native.close()


def test_threads_share_a_tokenizer(story: Pair) -> None:
    texts = ["Once upon a time " * n for n in range(1, 40)]
    expected = [story.native.encode(text) for text in texts]
    wrong = []

    def work() -> None:
        for _ in range(20):
            wrong.extend(
                t for t, e in zip(texts, expected, strict=True) if story.native.encode(t) != e
            )

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_child_process_may_go_on(story: Pair) -> None:
    expected = story.native.encode("Once upon a time")
    child = os.fork()
    if child == 0:
        os._exit(0 if story.native.encode("Once upon a time") == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_stream_shows_whole_characters_at_once(story: Pair) -> None:
    tokens = story.native.encode("a\U0001f600 b", add_special_tokens=False)
    stream = story.native.stream(continues=True)
    pieces = [stream.add(t) for t in tokens]
    assert "".join([*pieces, stream.finish()]) == " a\U0001f600 b"
    assert "\U0001f600" in "".join(pieces)  # as soon as the next token shows that it is whole


# ---- automata ----


def test_unprobed_code_points_are_like_their_neighbours() -> None:
    """Characters in planes without characters are taken from one of them."""
    from tokenizers import Regex, pre_tokenizers

    every = [chr(c) for c in range(0x40000, CODE_POINTS) if not 0xE0000 <= c < 0xE1000]
    for pattern in (r"\p{L}", r"[^\s\p{L}\p{N}]"):
        splitter = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True)
        matched = sum(len(piece) for piece, _ in splitter.pre_tokenize_str("".join(every)))
        chosen = probe_pattern(pattern)
        assert matched == sum(bool(chosen[ord(c)]) for c in every)


def test_the_first_alternative_wins_as_in_an_engine_that_backtracks() -> None:
    import re

    for pattern in ("a|ab|abc", "abc|ab|a", "(?:a|ab)(?:c|bcd)", "a*?b|a+", "x(?=y)|xy|x(?!z)"):
        automaton = build_automaton(parse_regex(pattern))
        for number in range(5**5):
            text = "".join("abcxy"[number // 5**k % 5] for k in range(5))
            found = re.compile(pattern).match(text)
            assert automaton.find(text) == (found.end() if found else -1), (pattern, text)


def test_gpt2_automaton_is_small() -> None:
    assert len(build_automaton(parse_regex(GPT2_PATTERN)).transitions) < 20
