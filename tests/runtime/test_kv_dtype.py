"""Bundles of a real model with each type of KV cache: they run, share, and nearly agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ondevice
from ondevice.build import build
from ondevice.errors import RuntimeFailure
from ondevice.recipe import load_recipe
from ondevice.runtime.engine import Engine

DTYPES = ("f32", "f16", "int8")
# To f32, relative to the range of the logits. With int8, queries and weights are int8 as well.
CLOSE = {"f16": 1e-3, "int8": 3e-2}
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


@pytest.mark.parametrize("dtype", CLOSE)
def test_smaller_ones_are_close_to_f32(bundles: dict[str, Path], dtype: str) -> None:
    logits = []
    for bundle in (bundles["f32"], bundles[dtype]):
        with ondevice.load(bundle) as engine:
            logits.append(engine.logits(engine.tokenizer.encode(TEXT)))
    difference = np.abs(logits[0] - logits[1]).max() / np.ptp(logits[0])
    assert 0 < difference < CLOSE[dtype]


@pytest.fixture(scope="module")
def with_outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with every third rotary pair of its keys 300 times as large."""
    safetensors = pytest.importorskip("safetensors.numpy")
    source = Path(load_recipe("stories260k").model)
    copy = tmp_path_factory.mktemp("outliers") / "stories"
    shutil.copytree(source, copy)
    config = json.loads((source / "config.json").read_text())
    tensors = safetensors.load_file(source / "model.safetensors")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    factors = np.tile(np.where(np.arange(head_dim // 2) % 3 == 1, 300, 1), 2).astype(np.float32)
    for name, values in tensors.items():
        if "k_proj" in name or "q_proj" in name:
            own = factors if "k_proj" in name else 1 / factors
            values *= np.tile(own, len(values) // head_dim)[:, None]
    safetensors.save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_outliers_among_the_keys_change_little(
    bundles: dict[str, Path],
    with_outliers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And much where pairs of queries and keys are not scaled against each other."""
    recipe = load_recipe("stories260k", model=with_outliers, settings=["kv.dtype=int8"])
    scaled = build(recipe, tmp_path / "scaled")
    monkeypatch.setattr("ondevice.build.balanced", lambda tensors, heads: tensors)
    plain = build(recipe, tmp_path / "plain")
    logits = []
    for bundle in (bundles["f32"], scaled, plain):
        with ondevice.load(bundle) as engine:
            logits.append(engine.logits(engine.tokenizer.encode(TEXT)))
    near, far = (np.abs(of - logits[0]).max() / np.ptp(logits[0]) for of in logits[1:])
    assert near < CLOSE["int8"] < far / 3


def test_a_saved_conversation_goes_on_the_same(bundles: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "saved.kv"
    for bundle in bundles.values():
        with ondevice.load(bundle) as engine, engine.conversation() as conversation:
            list(conversation.generate(TEXT, 8))
            conversation.save(place)
            said = "".join(conversation.generate(" Then", 20))
            logits = conversation.logits([5])
        with ondevice.load(bundle) as engine, engine.restore(place) as conversation:
            assert "".join(conversation.generate(" Then", 20)) == said
            assert conversation.stats.computed_tokens < 64
            np.testing.assert_array_equal(conversation.logits([5]), logits)


def test_a_conversation_of_another_cache_is_refused(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "saved.kv"
    with ondevice.load(bundles["f16"]) as engine, engine.conversation() as conversation:
        list(conversation.generate(TEXT, 0))
        conversation.save(place)
    with (
        ondevice.load(bundles["int8"]) as engine,
        pytest.raises(RuntimeFailure, match="saved by another build than this .* submit its text"),
    ):
        engine.restore(place)


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
