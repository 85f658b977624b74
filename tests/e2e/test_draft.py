"""With and without guesses a real model says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice.runtime.engine import Engine
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeConversation
from ondevice.runtime.sampling import Sampling, TokenLogprobs

BEGINNINGS = (
    "Once upon a time",
    "The little dog said: one two three one two three one two",
    "Tim and Sam were friends. Tim and Sam liked to play. Tim and",
    "a a a a a a a a",
    "Lily had a red ball. Ben had a blue ball. Lily gave Ben the red ball. Ben gave Lily the",
)
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7, seed=1),
    Sampling(temperature=0.2, seed=2),
    Sampling(temperature=1.5, seed=3, stop_tokens=(403, 407)),
    Sampling(repetition_penalty=1.1, frequency_penalty=0.2, logprobs=2),
    Sampling(temperature=0.5, seed=4, top_k=20, top_p=0.9, logprobs=0, stop=("park", "she w", ".")),
)
Said = tuple[Status, list[int] | list[TokenLogprobs], int]


def say(native: NativeConversation, tokens: list[int], sampling: Sampling, tokenizer: int) -> Said:
    native.submit(tokens, 150, sampling, tokenizer=tokenizer)
    said: list[int] | list[TokenLogprobs] = []
    read = native.read if sampling.logprobs is None else native.read_logprobs
    while True:
        status, more = read()
        said += more
        if status not in (Status.OK, Status.TIMEOUT):
            return status, said, native.length


@pytest.mark.parametrize("draft_tokens", [0, 2, 15])
def test_guesses_change_nothing(stories: Path, draft_tokens: int) -> None:
    drafted = 0
    with (
        Engine(stories, threads=2, draft_tokens=-1) as plain,
        Engine(stories, threads=2, draft_tokens=draft_tokens) as drafting,
    ):
        for beginning in BEGINNINGS:
            tokens = plain.tokenizer.encode(beginning)
            for sampling in SAMPLINGS:
                outcomes = []
                for engine in (plain, drafting):
                    with engine.conversation() as conversation:
                        native, handle = conversation._native, engine.tokenizer.handle.value
                        first = say(native, tokens, sampling, handle)
                        outcomes.append([first, say(native, tokens[-3:], sampling, handle)])
                        drafted += conversation.stats.drafted_tokens
                assert outcomes[0] == outcomes[1]
    assert drafted > 0 or draft_tokens == 0  # adaptive: only where it pays
