"""Answers of a real model: stop strings over a tokenizer with byte fallback, and logprobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ondevice.runtime.engine import Engine
from ondevice.runtime.header import Status
from ondevice.runtime.sampling import Sampling

PROMPT = "Once upon a time"
MOST = 30
LIVELY = Sampling(1.4, seed=5, stop_tokens=())


@pytest.fixture(scope="module")
def engine(chat_bundle: Path) -> Iterator[Engine]:
    with Engine(chat_bundle, threads=1) as engine:
        yield engine


def test_every_substring_stops(engine: Engine) -> None:
    """Newlines are tokens of one byte here, which are text only when the next token is known."""
    sampling = replace(LIVELY, logit_bias={13: 13.0})
    text = "".join(engine.generate(PROMPT, MOST, sampling))
    assert text.count("\n") > 2 and " " in text
    stops = {text[i:j] for i, j in itertools.combinations(range(len(text) + 1), 2) if j - i < 6}
    whole = 0
    for stop in sorted(stops):
        with engine.conversation() as conversation:
            pieces = conversation.generate(PROMPT, MOST, replace(sampling, stop=(stop,)))
            said = "".join(pieces)
            assert said == text[: text.index(stop)], stop
            assert conversation.ending is Status.STOP
            assert conversation._generation is not None
            kept = engine.tokenizer.decode(conversation._generation.generated, continues=True)
            assert said.startswith(kept)
            whole += said == kept
    assert whole > len(stops) // 2  # no token says the start of a word alone


def test_logprobs_of_an_answer(engine: Engine) -> None:
    tokens = engine.tokenizer.encode(PROMPT)
    with engine.conversation() as conversation:
        generation = conversation.begin(tokens, MOST, replace(LIVELY, logprobs=5, top_k=10))
        list(generation.tokens())
    logits = engine.logits([*tokens, *generation.generated])[len(tokens) - 1 : -1]
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert len(generation.logprobs) == MOST
    for entry, row in zip(generation.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token], rel=1e-6)
        assert [t for t, _ in entry.top] == np.argsort(-row, kind="stable")[:5].tolist()
