"""The bits of the logits depend on the tokens and on nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ondevice import debug
from ondevice.bundle.descriptor import model_symbol
from ondevice.passes import PASS_NAMES
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.engine import Engine
from ondevice.runtime.native import Library, NativeEngine, model_descriptor

from .conftest import PROMPT, Build

CHUNK = "prefill_chunk_tokens=7"


@pytest.fixture(scope="session")
def expected(engine: Engine, story: list[int]) -> np.ndarray:
    """Logits of the story, computed in as few steps as the runtime can."""
    return engine.logits(story)


def prefill(conversation: Conversation, tokens: list[int]) -> None:
    """Compute tokens without their logits, in steps as long as the program takes."""
    assert list(conversation.generate_tokens(tokens, max_tokens=0)) == []


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes(), f"rows {np.argwhere(actual != expected)[:4, 0]}"


@pytest.mark.parametrize("threads", [1, 2])
def test_decode_steps(stories: Path, story: list[int], expected: np.ndarray, threads: int) -> None:
    with Engine(stories, threads=threads) as engine, engine.conversation() as conversation:
        rows = [conversation.logits([token]) for token in story]
    assert_same_bits(np.concatenate(rows), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("settings", [(), (CHUNK,)], ids=["whole", "chunks"])
def test_prefill(
    built: Build, story: list[int], expected: np.ndarray, settings: tuple[str, ...], threads: int
) -> None:
    bundle = built(*settings).bundle
    with Engine(bundle, threads=threads) as engine, engine.conversation() as conversation:
        prefill(conversation, story[:290])
        assert_same_bits(conversation.logits(story[290:]), expected[290:])


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_in_chunks(
    built: Build, story: list[int], expected: np.ndarray, threads: int
) -> None:
    with Engine(built(CHUNK).bundle, threads=threads) as engine:
        assert_same_bits(engine.logits(story), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_conversations_in_the_same_steps(
    stories: Path, story: list[int], expected: np.ndarray, threads: int
) -> None:
    """One generates in the background while the logits of the other are asked for."""
    rows = []
    with (
        Engine(stories, threads=threads) as engine,
        engine.conversation() as one,
        engine.conversation() as other,
    ):
        generated = one.generate_tokens(story[:40], max_tokens=260)
        tokens = [next(generated)]
        for begin in range(0, 300, 10):
            rows.append(other.logits(story[begin : begin + 10]))
            tokens.append(next(generated))
        tokens += generated
    assert_same_bits(np.concatenate(rows), expected)
    assert tokens == story[40:]


def test_cpu_variants(stories: Path, story: list[int], expected: np.ndarray, variant: str) -> None:
    with Engine(stories, variant=variant) as engine:
        assert engine.info.variant == variant
        assert_same_bits(engine.logits(story), expected)


@pytest.mark.parametrize("disabled", [*PASS_NAMES, ",".join(PASS_NAMES)])
def test_passes_switched_off(
    built: Build, story: list[int], expected: np.ndarray, disabled: str
) -> None:
    with Engine(built(f"passes.disable={disabled}").bundle) as engine:
        assert_same_bits(engine.logits(story), expected)
        assert list(engine.generate_tokens(story[:7], max_tokens=64)) == story[7:71]


def test_integer_weights(built: Build, story: list[int], variant: str) -> None:
    """All passes and long steps on this CPU variant; no pass, single tokens on the best one."""
    scheme, none = "quant.default=int4_g32", f"passes.disable={','.join(PASS_NAMES)}"
    with Engine(built(scheme).bundle, variant=variant) as engine:
        fast = engine.logits(story[:100])
    with Engine(built(scheme, none).bundle) as engine, engine.conversation() as conversation:
        slow = np.concatenate([conversation.logits([token]) for token in story[:100]])
    assert_same_bits(fast, slow)


def test_int8_cache(built: Build, story: list[int], variant: str) -> None:
    """Long steps on this CPU variant, single tokens on the best one."""
    with Engine(built("kv.dtype=int8").bundle, variant=variant) as engine:
        fast = engine.logits(story)
    with Engine(built("kv.dtype=int8").bundle) as engine, engine.conversation() as conversation:
        slow = np.concatenate([conversation.logits([token]) for token in story])
    assert_same_bits(fast, slow)


def test_half_precision_cache_changes_little(
    built: Build, story: list[int], expected: np.ndarray
) -> None:
    with Engine(built("kv.dtype=f16").bundle) as engine:
        logits = engine.logits(story)
    assert 0 < np.abs(logits - expected).max() / np.ptp(expected) < 2e-3


def test_weights_inside_a_larger_file(engine: Engine, stories: Path, tmp_path: Path) -> None:
    """At 4 bytes behind a multiple of 64, with other bytes before and after."""
    file = tmp_path / "application.bin"
    weights = engine.bundle.weights_path.read_bytes()
    file.write_bytes(b"\xee" * (64 * 100 + 4) + weights + b"\xee" * 4096)
    symbol = model_symbol(engine.bundle.manifest.abi_hash)
    native = NativeEngine(
        Library(debug.runtime_library() or engine.bundle.libondevice),
        model_descriptor(engine.bundle.libmodel, symbol),
        file,
        offset=64 * 100 + 4,
    )
    tokens = engine.tokenizer.encode(PROMPT)
    logits = native.conversation().logits(tokens, engine.info.vocab_size)
    native.close()
    assert_same_bits(logits, engine.logits(tokens))
