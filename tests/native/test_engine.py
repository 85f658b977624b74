"""The runtime as it ships, over the toy model, against a NumPy reference."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import Library, NativeConversation, NativeEngine, model_descriptor
from ondevice.runtime.sampling import Sampling

from .conftest import OpenToy, Toy

VOCAB, CONTEXT = 97, 200
PROMPT = [i * 11 % VOCAB for i in range(70)]


def reference_logits(toy: Toy, tokens: list[int]) -> NDArray[np.float32]:
    """The toy model, a row at a time, every float operation in the order of its C."""
    inv_freq = np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    rows = []
    for position in range(len(tokens)):
        total = np.zeros(8, np.float32)
        for t in range(position + 1):
            total += toy.embedding[tokens[t]] / np.float32(1 + position - t)
        angles = (np.float32(position) * inv_freq).astype(np.float64)
        rope = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
        y = total * rope
        row = np.zeros(VOCAB, np.float32)
        for d in range(8):
            row += y[d] * toy.embedding[:, d]
        rows.append(row)
    return np.array(rows)


def read_all(conversation: NativeConversation) -> tuple[Status, list[int]]:
    tokens: list[int] = []
    while True:
        status, more = conversation.read()
        tokens += more
        if status not in (Status.OK, Status.TIMEOUT):
            return status, tokens


def generate(conversation: NativeConversation, *args: object, **kwargs: object) -> list[int]:
    conversation.submit(*args, **kwargs)  # type: ignore[arg-type]
    return read_all(conversation)[1]


@pytest.fixture
def engine(open_toy: OpenToy) -> NativeEngine:
    return open_toy()


def test_logits_equal_the_reference(engine: NativeEngine, toy: Toy) -> None:
    logits = engine.conversation().logits(PROMPT, VOCAB)
    np.testing.assert_array_equal(logits, reference_logits(toy, PROMPT))


def test_logits_in_pieces_are_the_same_bits(engine: NativeEngine) -> None:
    whole = engine.conversation().logits(PROMPT, VOCAB)
    conversation = engine.conversation()
    pieces = [conversation.logits(PROMPT[i:j], VOCAB) for i, j in ((0, 1), (1, 33), (33, 70))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_greedy_generation_follows_the_logits(engine: NativeEngine, toy: Toy) -> None:
    tokens = list(PROMPT)
    for _ in range(5):
        tokens.append(int(np.argmax(reference_logits(toy, tokens)[-1])))
    assert generate(engine.conversation(), PROMPT, 5) == tokens[70:]


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"variant": "plain"}])
def test_threads_and_variants_do_not_change_bits(
    open_toy: OpenToy, engine: NativeEngine, options: dict[str, object]
) -> None:
    other = open_toy(**options)
    expected = engine.conversation().logits(PROMPT, VOCAB)
    np.testing.assert_array_equal(other.conversation().logits(PROMPT, VOCAB), expected)


def test_best_variant_that_the_cpu_supports(engine: NativeEngine) -> None:
    assert engine.info.variant == "fast"
    assert engine.info.model == "toy"
    assert (engine.info.threads, engine.info.kv_blocks) == (2, 28)


def test_company_does_not_change_tokens(open_toy: OpenToy) -> None:
    """More conversations than rows of logits in a step, all at once."""
    engine = open_toy(conversations=12, kv_blocks=100)
    prompts = [PROMPT[i:] for i in range(12)]
    together = [engine.conversation() for _ in prompts]
    for conversation, prompt in zip(together, prompts, strict=True):
        conversation.submit(prompt, 20, Sampling(0.7, seed=3))
    results = [read_all(conversation)[1] for conversation in together]
    assert engine.info.kv_blocks_free == 100 - 12 * 3
    for conversation in together:
        conversation.close()
    assert engine.info.kv_blocks_free == 100
    assert results == [
        generate(engine.conversation(), prompt, 20, Sampling(0.7, seed=3)) for prompt in prompts
    ]


def test_second_turn_continues(engine: NativeEngine, toy: Toy) -> None:
    conversation = engine.conversation()
    first = generate(conversation, PROMPT[:20], 4)
    second = generate(conversation, [5, 6], 3)
    history = [*PROMPT[:20], *first, 5, 6]
    assert conversation.length == len(history) + 3
    assert second[0] == int(np.argmax(reference_logits(toy, history)[-1]))


def test_continue_without_tokens(engine: NativeEngine) -> None:
    whole = generate(engine.conversation(), PROMPT, 10)
    conversation = engine.conversation()
    pieces = generate(conversation, PROMPT, 4) + generate(conversation, [], 6)
    assert pieces == whole
    prefilled = engine.conversation()
    assert generate(prefilled, PROMPT, 0) == []
    assert generate(prefilled, [], 10) == whole


def test_rewind(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    first = generate(conversation, PROMPT, 10)
    conversation.rewind(40)
    assert generate(conversation, PROMPT[40:], 10) == first
    with pytest.raises(RuntimeFailure, match="rewind to 81 tokens: the conversation holds 80"):
        conversation.rewind(81)


def test_stop_token_is_neither_delivered_nor_kept(engine: NativeEngine) -> None:
    said = generate(engine.conversation(), PROMPT, 8, Sampling(1.5, seed=4))
    conversation = engine.conversation()
    conversation.submit(PROMPT, 8, Sampling(1.5, seed=4, stop_tokens=(said[3],)))
    assert read_all(conversation) == (Status.STOP, said[: said.index(said[3])])
    assert conversation.length == 70 + said.index(said[3])


def test_seed_decides(engine: NativeEngine) -> None:
    runs = [
        generate(engine.conversation(), PROMPT[:9], 30, Sampling(2.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_cancel_keeps_what_was_said(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    conversation.submit(PROMPT, 100)
    conversation.cancel()
    status, said = read_all(conversation)
    assert status in (Status.CANCELLED, Status.LENGTH)
    assert said == generate(engine.conversation(), PROMPT, 100)[: len(said)]
    assert conversation.read() == (status, [])  # repeated until the next submit


def test_context_full_loses_nothing(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    conversation.submit(PROMPT, 1000)
    status, said = read_all(conversation)
    assert (status, len(said)) == (Status.CONTEXT_FULL, CONTEXT - 70)
    assert conversation.explain() == (
        "the conversation holds 200 tokens, the context is 200; rewind it to go on"
    )
    with pytest.raises(RuntimeFailure, match="1 tokens do not fit: the conversation holds 200 of"):
        conversation.submit([1], 1)
    assert conversation.length == CONTEXT
    with pytest.raises(RuntimeFailure, match="201 tokens do not fit"):
        engine.conversation().submit([0] * 201, 1)


def test_full_kv_cache_loses_nothing(open_toy: OpenToy) -> None:
    expected = generate(open_toy().conversation(), PROMPT, 100)
    engine = open_toy(kv_blocks=5)
    other = engine.conversation()
    generate(other, PROMPT[1:34], 1)
    conversation = engine.conversation()
    conversation.submit(PROMPT, 100)
    status, said = read_all(conversation)
    assert (status, len(said)) == (Status.KV_FULL, 96 - 70 + 1)
    assert "holds 97 tokens in 3 KV blocks and needs another, 0 of 5 are free" in (
        conversation.explain()
    )
    with pytest.raises(RuntimeFailure, match="0 of 5 are free") as refused:
        conversation.submit([], 100)
    assert refused.value.status == Status.KV_FULL
    other.close()
    assert said + generate(conversation, [], 60) == expected[: len(said) + 60]


def test_refusals_name_the_numbers(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    for tokens, max_tokens, message in (
        ([1, 97], 1, "token 1 is 97, the vocabulary is 0..96"),
        ([-1], 1, "token 0 is -1"),
        ([], 1, "n = 0 tokens for an empty conversation"),
        ([1], -2, "max_tokens = -2 is negative"),
        ([2**31], 1, "not a 32-bit number"),
    ):
        with pytest.raises(RuntimeFailure, match=message):
            conversation.submit(tokens, max_tokens)
    with pytest.raises(RuntimeFailure, match="n = 0 tokens"):
        conversation.logits([], VOCAB)
    with pytest.raises(RuntimeFailure, match="nothing has been submitted"):
        conversation.read()
    with pytest.raises(RuntimeFailure, match="capacity = 0"):
        conversation.read(capacity=0)
    assert conversation.length == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, r"threads = -1 is not within 0\.\.128"),
        ({"threads": 1000}, "threads = 1000"),
        ({"conversations": 5000}, "conversations = 5000"),
        ({"kv_blocks": -1}, "kv_blocks = -1 is negative"),
        ({"kv_blocks": 2**31 - 1, "variant": "slow"}, "no CPU variant called slow"),
        ({"variant": "impossible"}, "this CPU cannot run variant impossible of toy"),
    ],
)
def test_options_are_checked(open_toy: OpenToy, options: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        open_toy(**options)


def test_busy_conversation_is_refused(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    messages = set()
    for _ in range(200):  # a toy may finish before the second call comes
        conversation.submit([1, 2, 3], 150)
        try:
            conversation.rewind(0)
        except RuntimeFailure as error:
            messages.add(str(error))
        conversation.cancel()
        read_all(conversation)
        conversation.rewind(0)
    assert messages == {"the conversation is generating: read to the end or cancel"}


def test_most_conversations(open_toy: OpenToy) -> None:
    engine = open_toy(conversations=2)
    first, _second = engine.conversation(), engine.conversation()
    with pytest.raises(RuntimeFailure, match="2 conversations are open"):
        engine.conversation()
    first.close()
    third = engine.conversation()
    with pytest.raises(RuntimeFailure, match="the conversation has been closed"):
        first.submit([1], 1)  # though its slot is in use again
    assert len(generate(third, [1], 3)) == 3


def test_closed_handles_are_refused(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    conversation.submit(PROMPT, 10_000)
    engine.close()
    engine.close()
    for call in (conversation.read, conversation.cancel, engine.conversation):
        with pytest.raises(RuntimeFailure, match="the engine has been closed"):
            call()
    conversation.close()


def test_close_while_another_thread_reads(engine: NativeEngine) -> None:
    conversation = engine.conversation()
    endings: list[object] = []

    def read_for_ever() -> None:
        try:
            while True:
                conversation.submit([1], 150)
                read_all(conversation)
                conversation.rewind(0)
        except RuntimeFailure as error:
            endings.append(error.status)

    reader = threading.Thread(target=read_for_ever)
    reader.start()
    time.sleep(0.02)
    engine.close()
    reader.join(10)
    assert endings == [Status.CLOSED]


def test_child_of_a_fork_is_refused(engine: NativeEngine, open_toy: OpenToy) -> None:
    conversation = engine.conversation()
    child = os.fork()
    if child == 0:
        try:
            conversation.submit([1], 1)
        except RuntimeFailure as error:
            own = generate(open_toy().conversation(), [1], 1)
            os._exit(0 if error.status == Status.FORKED and len(own) == 1 else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(generate(conversation, [1], 1)) == 1


def open_weights(library: Library, toy: Toy, weights: Path, offset: int = 0) -> NativeEngine:
    descriptor = model_descriptor(toy.library, "od_model_toy")
    return NativeEngine(library, descriptor, weights, offset=offset, threads=1)


@pytest.mark.parametrize("offset", [4, 65532, 70000])
def test_weights_at_any_multiple_of_four(
    offset: int, libondevice: Library, toy: Toy, tmp_path: Path, engine: NativeEngine
) -> None:
    weights = tmp_path / "app.apk"
    weights.write_bytes(b"x" * offset + toy.weights.read_bytes())
    inside = open_weights(libondevice, toy, weights, offset)
    expected = engine.conversation().logits(PROMPT, VOCAB)
    np.testing.assert_array_equal(inside.conversation().logits(PROMPT, VOCAB), expected)
    inside.close()


@pytest.mark.parametrize(
    ("at", "byte", "message"),
    [
        (0, 0, "not a weights file"),
        (8, 9, "weights file of version 9, this runtime reads 2"),
        (20, 1, "belongs to another build of toy"),
        (48, 1, "weights of 3073 bytes in a file of 3168, toy needs 3104"),
    ],
)
def test_damaged_header(
    at: int, byte: int, message: str, libondevice: Library, toy: Toy, tmp_path: Path
) -> None:
    data = bytearray(toy.weights.read_bytes())
    data[at] = byte
    weights = tmp_path / "weights.bin"
    weights.write_bytes(data)
    with pytest.raises(RuntimeFailure, match=message):
        open_weights(libondevice, toy, weights)


def test_short_weights(libondevice: Library, toy: Toy, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    shutil.copy(toy.weights, weights)
    for length in (3167, 64, 63, 0):
        os.truncate(weights, length)
        with pytest.raises(RuntimeFailure, match="weights of"):
            open_weights(libondevice, toy, weights)


def test_logits_that_are_no_numbers(libondevice: Library, toy: Toy, tmp_path: Path) -> None:
    data = bytearray(toy.weights.read_bytes())
    data[64:68] = np.float32("nan").tobytes()
    weights = tmp_path / "weights.bin"
    weights.write_bytes(data)
    engine = open_weights(libondevice, toy, weights)
    conversation = engine.conversation()
    conversation.submit([3, 4, 0], 5)
    with pytest.raises(RuntimeFailure, match="logits after token 2 of the conversation are not"):
        read_all(conversation)
    engine.close()
