"""Answers as text: whole characters, and stop strings wherever tokens begin and end in them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeConversation, NativeEngine
from ondevice.runtime.sampling import Sampling
from ondevice.runtime.tokenizer import Tokenizer

from .conftest import OpenToy

PROMPT = [i * 11 % 97 for i in range(40)]
BROKEN = "\N{REPLACEMENT CHARACTER}"  # no token says it
LIVELY = Sampling(50.0, seed=11)


def read_text(conversation: NativeConversation, capacity: int = 4096) -> tuple[Status, str]:
    text = ""
    while True:
        status, more = conversation.read_text(capacity)
        text += more
        if status not in (Status.OK, Status.TIMEOUT):
            return status, text


def read_tokens(conversation: NativeConversation) -> list[int]:
    """What is left to read of an answer that has ended."""
    tokens: list[int] = []
    while True:
        status, more = conversation.read()
        tokens += more
        if status is not Status.OK:
            return tokens


def answer(
    engine: NativeEngine, tokenizer: Tokenizer, sampling: Sampling = LIVELY, most: int = 60
) -> tuple[NativeConversation, Status, str]:
    conversation = engine.conversation()
    conversation.submit(PROMPT, most, sampling, tokenizer=tokenizer.handle.value)
    return (conversation, *read_text(conversation))


def cut(text: str, stops: tuple[str, ...]) -> str | None:
    """The text before the stop string that is complete first, of several the longest."""
    data = text.encode()
    for end in range(len(data) + 1):
        found = [s.encode() for s in stops if data[:end].endswith(s.encode())]
        if found:
            return data[: end - max(map(len, found))].decode()
    return None


@pytest.fixture
def engine(open_toy: OpenToy) -> NativeEngine:
    return open_toy()


def test_text_is_that_of_the_tokens(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    conversation, status, text = answer(engine, toy_tokenizer, most=150)
    tokens = read_tokens(conversation)
    assert (status, len(tokens)) == (Status.LENGTH, 150)
    assert text == toy_tokenizer.decode(tokens, continues=True)
    assert BROKEN in text and len(set(text)) > 15


@pytest.mark.parametrize("capacity", [4, 5, 7])
def test_small_pieces_are_whole_characters(
    capacity: int, engine: NativeEngine, toy_tokenizer: Tokenizer
) -> None:
    """Python's strict decoder would refuse half of one."""
    _, _, whole = answer(engine, toy_tokenizer, most=150)
    conversation = engine.conversation()
    conversation.submit(PROMPT, 150, LIVELY, tokenizer=toy_tokenizer.handle.value)
    assert read_text(conversation, capacity)[1] == whole


def test_special_tokens_are_silent(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    sampling = Sampling(1.0, logit_bias={0: 100.0})
    _, status, text = answer(engine, toy_tokenizer, sampling, most=5)
    assert (status, text) == (Status.LENGTH, "")
    conversation = engine.conversation()
    handle = toy_tokenizer.handle.value
    conversation.submit(PROMPT, 5, sampling, tokenizer=handle, text_flags=0)
    assert read_text(conversation)[1] == "<s>" * 5


def test_every_substring_stops(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    """Any start and end, so at and inside tokens, over one border and over many."""
    most = 24
    _, _, text = answer(engine, toy_tokenizer, most=most)
    stops = {text[i:j] for i, j in itertools.combinations(range(len(text) + 1), 2) if j - i < 9}
    stops |= {text[i:] for i in range(len(text))}
    assert len(stops) > 150
    for stop in sorted(stops):
        expected = cut(text, (stop,))
        sampling = replace(LIVELY, stop=(stop,))
        conversation, status, said = answer(engine, toy_tokenizer, sampling, most)
        assert (status, said) == (Status.STOP, expected), stop
        tokens = read_tokens(conversation)
        assert conversation.length == len(PROMPT) + len(tokens)
        decoded = toy_tokenizer.decode(tokens, continues=True)
        assert decoded == said or (said.startswith(decoded) and BROKEN in said[len(decoded) :])
        conversation.close()


def test_the_next_turn_continues_what_was_shown(
    engine: NativeEngine, toy_tokenizer: Tokenizer
) -> None:
    _, _, text = answer(engine, toy_tokenizer)
    for stop in (text[9:12], text[20:21], text[30:34]):
        conversation, _, said = answer(engine, toy_tokenizer, replace(LIVELY, stop=(stop,)))
        tokens = read_tokens(conversation)
        other = engine.conversation()
        conversation.submit([5, 6], 10)
        other.submit([*PROMPT, *tokens, 5, 6], 10)
        assert read_tokens_to_the_end(conversation) == read_tokens_to_the_end(other)
        assert said == toy_tokenizer.decode(tokens, continues=True)


def read_tokens_to_the_end(conversation: NativeConversation) -> list[int]:
    tokens: list[int] = []
    while True:
        status, more = conversation.read()
        tokens += more
        if status not in (Status.OK, Status.TIMEOUT):
            return tokens


def test_several_stop_strings(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    _, _, text = answer(engine, toy_tokenizer)
    near, far = text[14:17], text[25:28]
    for stops in (
        (far, near),
        (near, near[1:]),  # end at the same byte: the longest
        (text[10:40], near),  # one that begins earlier but is complete later
        (near + "never", far),  # held back, then let go
        ("never", "é日😀"),
    ):
        expected = cut(text, stops)
        conversation, status, said = answer(engine, toy_tokenizer, replace(LIVELY, stop=stops))
        assert said == (text if expected is None else expected)
        assert status is (Status.LENGTH if expected is None else Status.STOP)
        decoded = toy_tokenizer.decode(read_tokens(conversation), continues=True)
        assert decoded == said


def test_nothing_that_may_stop_is_shown_early(
    engine: NativeEngine, toy_tokenizer: Tokenizer
) -> None:
    """Text and tokens, read while they are generated, never take anything back."""
    _, _, text = answer(engine, toy_tokenizer, most=150)
    stop = text[100:108]
    expected = cut(text, (stop,))
    assert expected is not None
    conversation = engine.conversation()
    sampling = replace(LIVELY, stop=(stop,))
    conversation.submit(PROMPT, 150, sampling, tokenizer=toy_tokenizer.handle.value)
    shown, tokens, status = "", list[int](), Status.OK
    while status in (Status.OK, Status.TIMEOUT):
        status, more = conversation.read(1, 0)
        tokens += more
        assert expected.startswith(toy_tokenizer.decode(tokens, continues=True).rstrip(BROKEN))
        shown += conversation.read_text(8, 0)[1]
        assert expected.startswith(shown)
    assert shown + read_text(conversation)[1] == expected
    assert toy_tokenizer.decode(tokens, continues=True) == expected


def test_longest_stop_string(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    _, _, text = answer(engine, toy_tokenizer)
    stops = tuple(text[:30] + "x" * (1024 - len(text[:30].encode()) - i) for i in range(16))
    _, status, said = answer(engine, toy_tokenizer, replace(LIVELY, stop=stops))
    assert (status, said) == (Status.LENGTH, text)
    for stop, message in (
        ("x" * 10_000, "stop string 0 has 10000 bytes, 1 to 1024 are possible"),
        ("", "stop string 0 has 0 bytes, 1 to 1024 are possible"),
        ("\ud800", "stop string 0 is no UTF-8"),
    ):
        with pytest.raises(RuntimeFailure, match=message):
            answer(engine, toy_tokenizer, replace(LIVELY, stop=(stop,)))


def test_stop_token_before_a_stop_string(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    """What was held back is shown when the answer ends otherwise."""
    conversation, _, text = answer(engine, toy_tokenizer, most=10)
    tokens = read_tokens(conversation)
    end = next(i for i in range(4, 10) if tokens[i] not in tokens[:i])
    before = toy_tokenizer.decode(tokens[:end], continues=True)
    sampling = replace(LIVELY, stop=(before[-2:] + "never",), stop_tokens=(tokens[end],))
    _, status, said = answer(engine, toy_tokenizer, sampling, most=10)
    assert (status, said) == (Status.STOP, before)
    assert text.startswith(before.rstrip(BROKEN))


def test_text_needs_a_tokenizer(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    conversation = engine.conversation()
    with pytest.raises(RuntimeFailure, match="nothing has been submitted"):
        conversation.read_text()
    conversation.submit(PROMPT, 3)
    with pytest.raises(RuntimeFailure, match="od_submit was given no tokenizer"):
        conversation.read_text()
    read_tokens_to_the_end(conversation)
    with pytest.raises(RuntimeFailure, match="capacity = 3 bytes: a character may have 4"):
        conversation.read_text(3)
    with pytest.raises(RuntimeFailure, match="the tokenizer has been closed") as closed:
        conversation.submit([], 3, tokenizer=toy_tokenizer.handle.value + (1 << 20))
    assert closed.value.status == Status.CLOSED


def test_more_text_than_is_read(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    """Text that nobody reads waits; a rewind and the next request forget it."""
    conversation = engine.conversation()
    handle = toy_tokenizer.handle.value
    conversation.submit(PROMPT, 160, LIVELY, tokenizer=handle)
    tokens = read_tokens_to_the_end(conversation)
    assert read_text(conversation)[1] == toy_tokenizer.decode(tokens, continues=True)
    conversation.rewind(len(PROMPT))
    conversation.submit([], 60, LIVELY, tokenizer=handle)
    read_tokens_to_the_end(conversation)
    conversation.rewind(len(PROMPT))
    assert read_text(conversation)[1] == ""


def test_tokenizer_that_is_closed_too_early(
    engine: NativeEngine, toy_tokenizer_data: bytes, runtime_path: Path
) -> None:
    tokenizer = Tokenizer(runtime_path, toy_tokenizer_data)
    conversation = engine.conversation()
    endings = set()
    for _ in range(200):  # a toy may finish before the tokenizer is closed
        tokenizer = Tokenizer(runtime_path, toy_tokenizer_data)
        conversation.submit(PROMPT, 150, LIVELY, tokenizer=tokenizer.handle.value)
        tokenizer.close()
        try:
            endings.add(read_text(conversation)[0])
        except RuntimeFailure as error:
            assert str(error) == "the tokenizer was closed before the answer had ended"
            endings.add(Status(error.status))
        conversation.rewind(0)
    assert Status.CLOSED in endings and endings <= {Status.CLOSED, Status.LENGTH}
