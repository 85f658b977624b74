"""Logprobs, time limits, and answers with different sampling side by side."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeConversation, NativeEngine
from ondevice.runtime.sampling import Sampling, TokenLogprobs
from ondevice.runtime.tokenizer import Tokenizer

from .conftest import OpenToy

VOCAB = 97
PROMPT = [i * 11 % VOCAB for i in range(70)]


@pytest.fixture
def engine(open_toy: OpenToy) -> NativeEngine:
    return open_toy()


def read_all(conversation: NativeConversation) -> tuple[Status, list[int]]:
    tokens: list[int] = []
    while True:
        status, more = conversation.read()
        tokens += more
        if status not in (Status.OK, Status.TIMEOUT):
            return status, tokens


def read_logprobs(conversation: NativeConversation) -> list[TokenLogprobs]:
    entries: list[TokenLogprobs] = []
    while True:
        status, more = conversation.read_logprobs(5)
        entries += more
        if status not in (Status.OK, Status.TIMEOUT):
            return entries


# ---- logprobs ----


@pytest.mark.parametrize("top", [0, 1, 20])
def test_logprobs_are_those_of_the_model(top: int, engine: NativeEngine) -> None:
    """Of its own distribution, whatever the sampling."""
    sampling = Sampling(2.0, top_k=30, repetition_penalty=1.4, logit_bias={3: 2.0}, logprobs=top)
    conversation = engine.conversation()
    conversation.submit(PROMPT, 30, sampling)
    entries = read_logprobs(conversation)
    tokens = [entry.token for entry in entries]
    logits = engine.conversation().logits([*PROMPT, *tokens], VOCAB)[69:-1].astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert len(entries) == 30
    for entry, row, logit in zip(entries, expected, logits, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token], rel=1e-6, abs=1e-9)
        order = np.argsort(-logit, kind="stable")[:top]
        assert [token for token, _ in entry.top] == order.tolist()
        assert [p for _, p in entry.top] == pytest.approx(row[order].tolist(), rel=1e-6, abs=1e-9)


def test_logprobs_do_not_change_tokens(engine: NativeEngine) -> None:
    said = []
    for logprobs in (None, 20):
        conversation = engine.conversation()
        conversation.submit(PROMPT, 20, Sampling(3.0, seed=2, top_p=0.8, logprobs=logprobs))
        said.append(read_all(conversation)[1])
    assert said[0] == said[1]


def test_logprobs_must_be_asked_for(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    with pytest.raises(RuntimeFailure, match="nothing has been submitted"):
        conversation.read_logprobs()
    conversation.submit(PROMPT, 3)
    with pytest.raises(RuntimeFailure, match="od_submit was not asked for logprobs"):
        conversation.read_logprobs()


def test_logprobs_before_a_stop_string(engine: NativeEngine, toy_tokenizer: Tokenizer) -> None:
    """What says the first part of a token has that token's logprob, once."""
    sampling = Sampling(50.0, seed=11, logprobs=1)
    handle = toy_tokenizer.handle.value
    conversation = engine.conversation()
    conversation.submit(PROMPT, 40, sampling, tokenizer=handle)
    whole = read_logprobs(conversation)
    pieces = [toy_tokenizer.decode([entry.token], continues=True) for entry in whole]
    at = next(i for i, piece in enumerate(pieces) if len(piece) > 1 and i > 3)
    stop = pieces[at][-1] + pieces[at + 1]
    assert "\ufffd" not in stop and stop not in "".join(pieces[:at])
    conversation = engine.conversation()
    stopping = Sampling(50.0, seed=11, logprobs=1, stop=(stop,))
    conversation.submit(PROMPT, 40, stopping, tokenizer=handle)
    entries = read_logprobs(conversation)
    assert entries[:at] == whole[:at]
    assert (entries[at].logprob, entries[at].top) == (whole[at].logprob, whole[at].top)
    assert entries[at].token != whole[at].token
    assert all((entry.logprob, entry.top) == (0.0, ()) for entry in entries[at + 1 :])
    said = toy_tokenizer.decode([entry.token for entry in entries], continues=True)
    assert said == "".join(pieces).split(stop)[0]


# ---- time ----


def test_time_limit(engine: NativeEngine) -> None:
    """Nothing is lost: the rest of the answer comes when it is continued."""
    expected = read_all_of(engine, Sampling(2.0, seed=1))
    statuses = set()
    for timeout_s in (0.0, 1e-9, 1e-3, 1e-3, 1e-3, 60.0):
        conversation = engine.conversation()
        conversation.submit(PROMPT, 100, Sampling(2.0, seed=1, timeout_s=timeout_s))
        status, said = read_all(conversation)
        assert said == expected[: len(said)]
        assert status is Status.EXPIRED or len(said) == 100
        assert conversation.length == len(PROMPT) + len(said)
        statuses.add(status)
        if status is Status.EXPIRED:
            assert conversation.explain() == f"time is over after {len(said)} tokens"
            conversation.submit([], 100 - len(said), Sampling())
            assert read_all(conversation)[0] is Status.LENGTH
        conversation.close()
    assert Status.LENGTH in statuses


def read_all_of(engine: NativeEngine, sampling: Sampling) -> list[int]:
    conversation = engine.conversation()
    conversation.submit(PROMPT, 100, sampling)
    return read_all(conversation)[1]


def test_time_limit_holds_for_who_waits_for_a_turn(open_toy: OpenToy) -> None:
    """More conversations than a step has rows: all of them end, those that got none too."""
    engine = open_toy(conversations=40, kv_blocks=300)
    limited = Sampling(timeout_s=0.001)  # the answers take some 900 steps
    conversations = [engine.conversation() for _ in range(40)]
    for conversation in conversations:
        conversation.submit(PROMPT, 10_000, limited)
    endings = {read_all(conversation)[0] for conversation in conversations}
    assert Status.EXPIRED in endings and endings <= {Status.EXPIRED, Status.CONTEXT_FULL}


# ---- side by side ----


def mixed(number: int) -> Sampling:
    """As different as can be."""
    return (
        Sampling(),
        Sampling(3.0, seed=number),
        Sampling(2.0, seed=number, top_k=5 + number),
        Sampling(2.0, seed=number, top_p=0.7, repetition_penalty=1.3),
        Sampling(4.0, seed=number, min_p=0.05, presence_penalty=0.8, frequency_penalty=0.3),
        Sampling(2.5, seed=number, typical_p=0.8, logprobs=3),
        Sampling(logit_bias={number: 5.0}, repetition_penalty=1.5, penalty_tokens=20),
        Sampling(30.0, seed=number, stop=(".a", "b#"), logprobs=0),
    )[number % 8]


@pytest.mark.parametrize("threads", [1, 3])
def test_64_conversations_interleaved_equal_each_alone(
    threads: int, open_toy: OpenToy, toy_tokenizer: Tokenizer
) -> None:
    handle = toy_tokenizer.handle.value
    prompts = [PROMPT[number % 11 : 12 + number] for number in range(64)]
    engine = open_toy(conversations=64, kv_blocks=64 * 7, threads=threads)
    together = [engine.conversation() for _ in prompts]
    for number, (conversation, prompt) in enumerate(zip(together, prompts, strict=True)):
        conversation.submit(prompt, 30 + number % 40, mixed(number), tokenizer=handle)
    answers = [read_all(conversation) for conversation in together]
    alone = open_toy()
    for number, prompt in enumerate(prompts):
        conversation = alone.conversation()
        conversation.submit(prompt, 30 + number % 40, mixed(number), tokenizer=handle)
        assert read_all(conversation) == answers[number], number
        conversation.close()
    assert len({tuple(tokens) for _, tokens in answers}) == 64
