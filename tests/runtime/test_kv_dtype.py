"""Bundles of a real model with either type of KV cache: they run, share, and nearly agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ondevice
from ondevice.build import build
from ondevice.recipe import load_recipe
from ondevice.runtime.engine import Engine

DTYPES = ("f32", "f16")
TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside. " * 3


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("kv")
    return {
        dtype: build(load_recipe("stories260k", settings=[f"kv.dtype={dtype}"]), out / dtype)
        for dtype in DTYPES
    }


@pytest.fixture(params=DTYPES)
def engine(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Engine:
    return ondevice.load(bundles[request.param], threads=2)


def test_dtype_is_that_of_the_recipe(bundles: dict[str, Path]) -> None:
    for dtype, bundle in bundles.items():
        with ondevice.load(bundle) as engine:
            assert engine.bundle.manifest.model.kv_dtype == dtype


def test_f16_is_close_to_f32(bundles: dict[str, Path]) -> None:
    logits = []
    for bundle in bundles.values():
        with ondevice.load(bundle) as engine:
            logits.append(engine.logits(engine.tokenizer.encode(TEXT)))
    difference = np.abs(logits[0] - logits[1]).max() / np.ptp(logits[0])
    assert 0 < difference < 1e-3


def test_special_tokens_come_once(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        first = engine.tokenizer.encode(TEXT)
        assert first[0] == engine.bundle.manifest.tokenizer.bos_token_id
        list(conversation.generate(TEXT, 0))
        assert conversation.length == len(first)
        list(conversation.generate(TEXT, 0))
        assert conversation.length == 2 * len(first) - 1


def test_shared_prefix_gives_the_same_bits(engine: Engine) -> None:
    with engine:
        tokens = engine.tokenizer.encode(TEXT)
        whole = engine.logits(tokens)  # computed in pieces, before anything could be shared
        with engine.conversation() as first, engine.conversation() as second:
            said = list(first.generate_tokens(tokens, 40))
            assert list(second.generate_tokens(tokens, 40)) == said
            shared = (len(tokens) - 1) // 32 * 32
            assert second.stats.shared_tokens == shared > 0
            second.rewind(0)
            list(second.generate_tokens(tokens[: shared + 1], 0))
            assert second.stats.shared_tokens == shared
            np.testing.assert_array_equal(second.logits(tokens[shared + 1 :]), whole[shared + 1 :])


def test_fork_of_a_real_conversation(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        list(conversation.generate(TEXT, 10))
        with conversation.fork() as fork:
            endings = [" Then", " But"]
            said = [
                "".join(conversation.generate(endings[0], 20)),
                "".join(fork.generate(endings[1], 20)),
            ]
            length = fork.length
        conversation.rewind(0)
        list(conversation.generate(TEXT, 10))
        again = conversation.fork()
        assert "".join(again.generate(endings[1], 20)) == said[1] != said[0]
        assert again.length == length
