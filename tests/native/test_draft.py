"""Guessed tokens change the speed and never what is said."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeConversation, NativeEngine
from ondevice.runtime.sampling import Sampling

from .conftest import OpenToy
from .test_sharing import VOCAB, read_all

MOST = 15
# The toy says the same few tokens again and again at a low temperature, so guesses are often right.
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.3, seed=1),
    Sampling(temperature=1.0, seed=2),
    Sampling(stop_tokens=(7, 60), temperature=1.0, seed=3),
    Sampling(repetition_penalty=1.2, frequency_penalty=0.3, penalty_tokens=9, logprobs=3),
    Sampling(temperature=0.6, seed=4, top_k=9, top_p=0.9, presence_penalty=0.5, logprobs=1),
)


def prompts() -> list[list[int]]:
    choose = random.Random(0)
    some = [choose.randrange(VOCAB) for _ in range(9)]
    return [
        some * 5,
        [3] * 20,
        [*some, 1, *some[:4], 2, *some],
        [choose.randrange(VOCAB) for _ in range(70)],
        [5],
    ]


def say(
    conversation: NativeConversation, tokens: list[int], most: int, sampling: Sampling
) -> tuple[Status, list[int]]:
    conversation.submit(tokens, most, sampling)
    return read_all(conversation)


def talk(engine: NativeEngine, prompt: list[int], sampling: Sampling) -> list[object]:
    """Three turns and a rewind, with all that can be seen of them."""
    seen: list[object] = []
    with_one = engine.conversation()
    for tokens, most in ((prompt, 40), (prompt[:4], 33), ([], 1)):
        seen += [say(with_one, tokens, most, sampling), with_one.length]
    with_one.rewind(with_one.length // 2)
    seen.append(say(with_one, prompt[2:9], 1000, sampling))
    seen += [with_one.length, engine.info.kv_blocks_free]
    with_one.rewind(min(with_one.length, 150))
    seen.append(with_one.logits([4, 9], VOCAB).tolist())
    with_one.close()
    return seen


@pytest.mark.parametrize("draft_tokens", [0, 1, 4, MOST])
def test_the_same_is_said(open_toy: OpenToy, draft_tokens: int) -> None:
    plain, engine = open_toy(draft_tokens=-1), open_toy(draft_tokens=draft_tokens)
    for prompt in prompts():
        for sampling in SAMPLINGS:
            assert talk(engine, prompt, sampling) == talk(plain, prompt, sampling)


def test_guesses_are_made_and_some_are_right(open_toy: OpenToy) -> None:
    conversation = open_toy(draft_tokens=4).conversation()
    said = say(conversation, [3, 4, 5] * 8, 60, Sampling())[1]
    stats = conversation.stats
    assert stats.generated_tokens == len(said) == 60
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    plain = open_toy(draft_tokens=-1).conversation()
    say(plain, [3, 4, 5] * 8, 60, Sampling())
    assert (plain.stats.drafted_tokens, plain.stats.accepted_tokens) == (0, 0)
    assert plain.stats.total_computed_tokens == stats.total_computed_tokens


def test_company_changes_nothing(open_toy: OpenToy) -> None:
    expected = [
        say(open_toy(draft_tokens=-1).conversation(), prompt, 60, Sampling(temperature=0.5))
        for prompt in prompts()
    ]
    engine = open_toy(draft_tokens=MOST, kv_blocks=40)  # six rows of logits for all
    for _ in range(3):
        conversations = [engine.conversation() for _ in prompts()]
        for conversation, prompt in zip(conversations, prompts(), strict=True):
            conversation.submit(prompt, 60, Sampling(temperature=0.5))
        assert [read_all(c) for c in conversations] == expected
        for conversation in conversations:
            conversation.close()


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_guesses_take_no_block_that_others_need(open_toy: OpenToy, blocks: int) -> None:
    """Where blocks run out, they run out at the same token with and without guesses."""
    outcomes = []
    for draft_tokens in (-1, MOST):
        conversation = open_toy(draft_tokens=draft_tokens, kv_blocks=blocks).conversation()
        outcomes.append(say(conversation, [3, 4, 5] * 5, 150, Sampling()))
        assert conversation.length == blocks * 32 + 1
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] is Status.KV_FULL


def test_context_ends_at_the_same_token(open_toy: OpenToy) -> None:
    said = []
    for draft_tokens in (-1, MOST):
        conversation = open_toy(draft_tokens=draft_tokens).conversation()
        said.append(say(conversation, [3, 4] * 60, 1000, Sampling()))
        assert (conversation.length, said[-1][0]) == (200, Status.CONTEXT_FULL)
    assert said[0] == said[1]


def test_forks_guess_for_themselves(open_toy: OpenToy) -> None:
    results = []
    for draft_tokens in (-1, 6):
        conversation = open_toy(draft_tokens=draft_tokens).conversation()
        said = [say(conversation, [8, 9, 8, 9, 8], 20, Sampling())]
        fork = conversation.fork()
        said += [
            say(c, [9, 8], 30, Sampling(temperature=0.4, seed=6)) for c in (fork, conversation)
        ]
        conversation.rewind(10)
        said.append(say(conversation, [1, 2, 1, 2, 1], 30, Sampling()))
        results.append((said, np.asarray(fork.logits([1, 2], VOCAB)).tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("draft_tokens", [-2, 16])
def test_numbers_that_mean_nothing(open_toy: OpenToy, draft_tokens: int) -> None:
    with pytest.raises(RuntimeFailure, match=f"draft_tokens = {draft_tokens} is not within -1..15"):
        open_toy(draft_tokens=draft_tokens)
