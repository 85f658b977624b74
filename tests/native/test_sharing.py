"""Conversations that share KV blocks say the same, bit for bit, as those that share nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import (
    ConversationStats,
    Library,
    NativeConversation,
    NativeEngine,
    model_descriptor,
)
from ondevice.runtime.sampling import GREEDY, Sampling

from .conftest import OpenToy, Toy

VOCAB, CONTEXT, BLOCK_TOKENS = 97, 200, 32
PROMPT = [i * 11 % VOCAB for i in range(110)]  # 3 blocks and 14 tokens


def read_all(conversation: NativeConversation) -> tuple[Status, list[int]]:
    tokens: list[int] = []
    while True:
        status, more = conversation.read()
        tokens += more
        if status not in (Status.OK, Status.TIMEOUT):
            return status, tokens


def generate(conversation: NativeConversation, tokens: list[int], most: int) -> list[int]:
    conversation.submit(tokens, most)
    return read_all(conversation)[1]


def reused(stats: ConversationStats) -> tuple[int, int, int]:
    assert stats.own_tokens + stats.shared_tokens == stats.reused_tokens
    return stats.own_tokens, stats.shared_tokens, stats.computed_tokens


@pytest.fixture
def engine(open_toy: OpenToy) -> NativeEngine:
    return open_toy()


@pytest.mark.parametrize("closed", [False, True])
def test_shared_prompt_is_computed_once(
    engine: NativeEngine, open_toy: OpenToy, closed: bool
) -> None:
    first, second = engine.conversation(), engine.conversation()
    said = generate(first, PROMPT, 20)
    assert reused(first.stats) == (0, 0, 110)
    if closed:
        first.close()
        assert engine.info.kv_blocks_free == engine.info.kv_blocks
        assert engine.info.kv_blocks_cached == 4  # 110 and 19 generated tokens
    assert generate(second, PROMPT, 20) == said
    assert reused(second.stats) == (0, 96, 14)
    alone = open_toy().conversation().logits(said, VOCAB)
    second.rewind(0)
    np.testing.assert_array_equal(second.logits(said, VOCAB), alone)


def test_logits_behind_a_shared_prefix_are_the_same_bits(
    engine: NativeEngine, open_toy: OpenToy
) -> None:
    whole = open_toy().conversation().logits(PROMPT, VOCAB)
    generate(engine.conversation(), PROMPT, 1)
    conversation = engine.conversation()
    generate(conversation, PROMPT[:97], 0)
    assert reused(conversation.stats) == (0, 96, 1)
    np.testing.assert_array_equal(conversation.logits(PROMPT[97:], VOCAB), whole[97:])
    conversation.rewind(0)
    np.testing.assert_array_equal(conversation.logits(PROMPT, VOCAB), whole)
    assert reused(conversation.stats) == (0, 0, 110)  # all their logits were wanted


@pytest.mark.parametrize("length", [32, 33, 64, 96, 97])
def test_last_token_is_always_computed(engine: NativeEngine, length: int) -> None:
    prompt = PROMPT[:length]
    said = [generate(engine.conversation(), prompt, 5) for _ in range(3)]
    assert said[0] == said[1] == said[2]
    conversation = engine.conversation()
    generate(conversation, prompt, 0)
    shared = (length - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert reused(conversation.stats) == (0, shared, length - shared)
    assert generate(conversation, [], 5) == said[0]
    assert reused(conversation.stats) == (length - 1, 0, 1)


def test_only_the_whole_prefix_counts(engine: NativeEngine) -> None:
    generate(engine.conversation(), PROMPT, 1)
    conversation = engine.conversation()
    generate(conversation, [PROMPT[0] + 1, *PROMPT[1:]], 1)
    assert reused(conversation.stats) == (0, 0, 110)
    other = engine.conversation()
    generate(other, [*PROMPT[:40], 1, *PROMPT[41:]], 1)
    assert reused(other.stats) == (0, 32, 78)
    moved = engine.conversation()
    generate(moved, PROMPT[32:], 1)
    assert reused(moved.stats) == (0, 0, 78)


def test_prompts_that_arrive_together_are_computed_once(open_toy: OpenToy) -> None:
    engine = open_toy(conversations=4)
    together = [engine.conversation() for _ in range(4)]
    for conversation in together:
        conversation.submit(PROMPT, 10)
    said = [read_all(conversation)[1] for conversation in together]
    assert said == [generate(open_toy().conversation(), PROMPT, 10)] * 4
    assert engine.info.kv_blocks - engine.info.kv_blocks_free == 3 + 4  # and 4 last blocks
    computed = sum(conversation.stats.computed_tokens for conversation in together)
    assert computed < 3 * len(PROMPT)


def test_later_turns_compute_only_what_is_new(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    said = generate(conversation, PROMPT, 10)
    generate(conversation, [5, 6], 4)
    # The last token of a turn has been sampled and not computed.
    assert reused(conversation.stats) == (110 + 9, 0, 3)
    stats = conversation.stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (122, 4)
    assert stats.total_reused_tokens == 119
    assert stats.total_computed_tokens == 110 + 9 + 3 + 3
    assert 0 < stats.first_token_ms < 10_000
    assert stats.tokens_per_second > 0
    # A history that is submitted again, as stateless clients do, is not computed again either.
    again = engine.conversation()
    generate(again, [*PROMPT, *said, 5, 6], 4)
    assert reused(again.stats) == (0, 96, 26)


def test_stats_before_anything_was_said(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    assert conversation.stats == ConversationStats(0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0, 0)
    generate(conversation, PROMPT, 0)
    assert (conversation.stats.first_token_ms, conversation.stats.tokens_per_second) == (0, 0)


def test_fork_shares_until_one_writes(open_toy: OpenToy) -> None:
    engine = open_toy(kv_blocks=6)
    conversation = engine.conversation()
    generate(conversation, PROMPT, 1)
    fork = conversation.fork()
    assert (fork.length, engine.info.kv_blocks_free) == (111, 2)
    with pytest.raises(RuntimeFailure, match="nothing has been submitted"):
        fork.read()
    expected = {
        extra: generate(open_toy().conversation(), [*PROMPT, *said, extra], 8)
        for said in [generate(open_toy().conversation(), PROMPT, 1)]
        for extra in (7, 8)
    }
    assert generate(fork, [7], 8) == expected[7]
    assert engine.info.kv_blocks_free == 1  # the last block was copied
    assert generate(conversation, [8], 8) == expected[8]
    assert engine.info.kv_blocks_free == 1
    assert reused(fork.stats) == (110, 0, 2)


def test_rewind_of_a_fork_leaves_the_other_alone(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    whole = generate(conversation, PROMPT, 30)
    conversation.rewind(110)
    fork = conversation.fork()
    fork.rewind(40)
    generate(fork, [1] * 60, 10)
    assert generate(conversation, [], 30) == whole
    fork.close()
    conversation.rewind(110)
    assert generate(conversation, [], 30) == whole


def test_fork_of_a_fork_outlives_both(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    said = generate(conversation, PROMPT, 12)
    child = conversation.fork()
    grandchild = child.fork()
    conversation.close()
    child.close()
    grandchild.rewind(110)
    assert generate(grandchild, [], 12) == said


def test_fork_is_refused_while_generating_and_without_a_slot(open_toy: OpenToy) -> None:
    engine = open_toy(conversations=1)
    conversation = engine.conversation()
    generate(conversation, PROMPT, 1)
    with pytest.raises(RuntimeFailure, match="1 conversations are open"):
        conversation.fork()
    engine.close()
    with pytest.raises(RuntimeFailure, match="the engine has been closed"):
        conversation.fork()


def test_what_is_cached_makes_room(open_toy: OpenToy) -> None:
    """The least recently used prompt is forgotten first."""
    engine = open_toy(kv_blocks=8)
    prompts = [[start, *PROMPT[:79]] for start in (1, 2, 3, 4)]

    def shared(prompt: list[int]) -> int:
        conversation = engine.conversation()
        generate(conversation, prompt, 1)
        shared_tokens = conversation.stats.shared_tokens
        conversation.close()
        assert engine.info.kv_blocks_free == 8
        return shared_tokens

    assert [shared(prompt) for prompt in prompts[:3]] == [0, 0, 0]
    assert engine.info.kv_blocks_cached == 6
    assert shared(prompts[0]) == 64  # used now, so 1 is the oldest
    assert shared(prompts[3]) == 0
    assert [shared(prompts[i]) for i in (0, 2)] == [64, 64]
    assert shared(prompts[1]) < 64


def test_errors_say_what_is_needed(open_toy: OpenToy) -> None:
    engine = open_toy(kv_blocks=5)
    first, second = engine.conversation(), engine.conversation()
    generate(first, PROMPT, 1)
    with pytest.raises(RuntimeFailure) as refused:
        second.submit([*PROMPT[:40], *PROMPT[:60]], 1)
    assert refused.value.status == Status.KV_FULL
    assert str(refused.value) == (
        "100 tokens need 3 more KV blocks of 32 tokens, 1 of 5 are free; close or rewind a "
        "conversation and submit again, or open the engine with more kv_blocks"
    )
    assert (second.length, engine.info.kv_blocks_free) == (0, 1)
    with pytest.raises(RuntimeFailure) as refused:
        second.submit([1] * 201, 1)
    assert str(refused.value) == (
        "201 tokens do not fit: the conversation holds 0 of the context of 200; submit at most "
        "200, or rewind it"
    )
    first.rewind(32)
    expected = generate(open_toy().conversation(), [*PROMPT[:40], *PROMPT[:60]], 5)
    assert generate(second, [*PROMPT[:40], *PROMPT[:60]], 5) == expected


def test_fork_in_a_full_pool_needs_a_block_to_write(open_toy: OpenToy) -> None:
    engine = open_toy(kv_blocks=4)
    conversation = engine.conversation()
    said = generate(conversation, PROMPT, 10)
    conversation.rewind(110)
    fork = conversation.fork()
    with pytest.raises(RuntimeFailure, match="0 tokens need 1 more KV blocks of 32 tokens, 0 of 4"):
        fork.submit([], 10)
    fork.close()
    assert generate(conversation, [], 10) == said


def test_a_full_last_block_can_be_continued_in_a_full_pool(open_toy: OpenToy) -> None:
    engine = open_toy(kv_blocks=3)
    expected = generate(open_toy().conversation(), PROMPT[:96], 1)
    conversation = engine.conversation()
    generate(conversation, PROMPT[:96], 0)
    for _ in range(3):
        assert generate(conversation, [], 1) == expected
        conversation.rewind(96)
    conversation.rewind(95)
    assert generate(conversation, [1], 0) == []
    expected = generate(open_toy().conversation(), [*PROMPT[:95], 1], 1)
    assert generate(conversation, [], 1) == expected


# ---- any order of calls ----

PROMPTS = st.builds(
    lambda start, n, tail: [*[start] * n, *tail],
    st.integers(1, 2),
    st.integers(0, 100),
    st.lists(st.integers(0, 4), max_size=4),
)
NUMBER = st.integers(0, 3)


class Sharing(RuleBasedStateMachine):
    """Conversations in a pool too small for them, beside a list of tokens for each."""

    open_engine: Callable[..., NativeEngine]
    alone: dict[tuple[object, ...], list[int]]
    rows: dict[tuple[int, ...], NDArray[np.float32]]

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.open_engine(kv_blocks=9, conversations=4)
        self.open: list[NativeConversation] = []
        self.tokens: list[list[int]] = []

    def generated_alone(self, *call: object) -> list[int]:
        """What an engine of its own generates; `call` is that of submit."""
        if call not in self.alone:
            engine = self.open_engine()
            conversation = engine.conversation()
            tokens, *rest = call
            conversation.submit(tokens, *rest)  # type: ignore[arg-type]
            self.alone[call] = read_all(conversation)[1]
            engine.close()
        return self.alone[call]

    def logits_alone(self, tokens: list[int]) -> NDArray[np.float32]:
        key = tuple(tokens)
        if key not in self.rows:
            engine = self.open_engine()
            self.rows[key] = engine.conversation().logits(tokens, VOCAB)
            engine.close()
        return self.rows[key]

    @precondition(lambda self: len(self.open) < 4)
    @rule()
    def open_one(self) -> None:
        self.open.append(self.engine.conversation())
        self.tokens.append([])

    @precondition(lambda self: self.open)
    @rule(
        requests=st.dictionaries(NUMBER, PROMPTS, min_size=1),
        most=st.integers(0, 50),
        sampling=st.sampled_from([GREEDY, Sampling(1.0), Sampling(2.0, repetition_penalty=1.5)]),
    )
    def generate(self, requests: dict[int, list[int]], most: int, sampling: Sampling) -> None:
        """All at once; more than the pool has room for at times."""
        started = [
            number
            for number, prompt in requests.items()
            if number < len(self.open) and self.submit(number, prompt, most, sampling)
        ]
        for number in started:
            status, said = read_all(self.open[number])
            expected = self.generated_alone(tuple(self.tokens[number]), most, sampling)
            assert said == expected[: len(said)]
            assert status is Status.KV_FULL or len(said) == len(expected)
            stats = self.open[number].stats
            assert stats.reused_tokens + stats.computed_tokens == stats.prompt_tokens
            assert stats.computed_tokens > 0
            self.tokens[number] += said

    def submit(self, number: int, prompt: list[int], most: int, sampling: Sampling) -> bool:
        try:
            self.open[number].submit(prompt, most, sampling)
        except RuntimeFailure as error:
            if error.status == Status.KV_FULL:
                match = re.search(r"need (\d+) more KV blocks of 32 tokens, (\d+) of 9", str(error))
                assert match is not None and int(match[1]) > int(match[2])
            elif self.tokens[number] or prompt:
                assert error.status == Status.CONTEXT_FULL
            return False
        self.tokens[number] += prompt
        return True

    @precondition(lambda self: self.open)
    @rule(number=NUMBER, prompt=PROMPTS.filter(bool))
    def logits(self, number: int, prompt: list[int]) -> None:
        if number >= len(self.open) or len(self.tokens[number]) + len(prompt) > CONTEXT:
            return
        try:
            logits = self.open[number].logits(prompt, VOCAB)
        except RuntimeFailure as error:
            assert error.status == Status.KV_FULL
            return
        self.tokens[number] += prompt
        expected = self.logits_alone(self.tokens[number])
        np.testing.assert_array_equal(logits, expected[-len(prompt) :])

    @precondition(lambda self: 0 < len(self.open) < 4)
    @rule(number=NUMBER)
    def fork(self, number: int) -> None:
        number %= len(self.open)
        free = self.engine.info.kv_blocks_free
        self.open.append(self.open[number].fork())
        self.tokens.append(list(self.tokens[number]))
        assert self.engine.info.kv_blocks_free == free

    @precondition(lambda self: 0 < len(self.open) < 4)
    @rule(number=NUMBER, keep=st.floats(0, 1))
    def fork_and_part(self, number: int, keep: float) -> None:
        """Both write to the block that they share."""
        number %= len(self.open)
        self.rewind(number, keep)
        self.fork(number)
        self.generate({number: [3], len(self.open) - 1: [4]}, 2, GREEDY)
        self.generate({number: [], len(self.open) - 1: []}, 2, GREEDY)

    @precondition(lambda self: self.open)
    @rule(number=NUMBER, keep=st.floats(0, 1))
    def rewind(self, number: int, keep: float) -> None:
        number %= len(self.open)
        kept = int(keep * len(self.tokens[number]))
        self.open[number].rewind(kept)
        del self.tokens[number][kept:]

    @precondition(lambda self: self.open)
    @rule(number=NUMBER)
    def close(self, number: int) -> None:
        number %= len(self.open)
        self.open.pop(number).close()
        del self.tokens[number]

    @invariant()
    def lengths_agree_and_no_block_is_lost(self) -> None:
        assert [c.length for c in self.open] == [len(tokens) for tokens in self.tokens]
        full_blocks = {
            tuple(tokens[:end])
            for tokens in self.tokens
            for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS)
        }
        last_blocks = sum(bool(tokens) for tokens in self.tokens)
        info = self.engine.info
        assert info.kv_blocks - info.kv_blocks_free <= len(full_blocks) + last_blocks
        assert info.kv_blocks_cached <= info.kv_blocks_free

    def teardown(self) -> None:
        self.engine.close()


def test_any_order_of_calls(toy: Toy, libondevice: Library) -> None:
    descriptor = model_descriptor(toy.library, "od_model_toy")

    def open_engine(**options: int) -> NativeEngine:
        return NativeEngine(libondevice, descriptor, toy.weights, threads=1, **options)

    Sharing.open_engine = staticmethod(open_engine)
    Sharing.alone, Sharing.rows = {}, {}
    run_state_machine_as_test(
        Sharing, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )
