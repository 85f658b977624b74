"""A system prompt that ships computed: conversations find it, the same bits for any target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ondevice.build import build
from ondevice.bundle.descriptor import pack_weights_header
from ondevice.bundle.kv_file import checksum, rebind
from ondevice.bundle.read import open_bundle
from ondevice.bundle.verify import require_whole
from ondevice.errors import BundleError, RecipeError, RuntimeFailure
from ondevice.gate.prompt import write_prompt
from ondevice.recipe import KvRecipe, PromptRecipe, Recipe, load_recipe
from ondevice.runtime.engine import Engine

SYSTEM = (
    "Once upon a time, in a small house by the sea, there lived a girl who loved to read. Every "
    "day she went to the big tree in the park and read her book until the sun went down."
)


def recipe_with(system: str, target: str = "host") -> Recipe:
    return replace(load_recipe("stories260k", target=target), prompt=PromptRecipe(system))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompt") / "shipped.bundle"
    return build(recipe_with(SYSTEM), out, write_prompt=write_prompt)


def test_the_prompt_is_not_computed_again(shipped: Path, stories: Path) -> None:
    info = open_bundle(shipped).manifest.prompt
    assert (info.system, info.file) == (SYSTEM, "prompt/system.kv")
    require_whole(shipped)
    with Engine(stories, threads=2) as plain, Engine(shipped, threads=2) as engine:
        tokens = engine.tokenizer.encode(SYSTEM + " One day,")
        assert 32 <= info.tokens <= len(tokens) and info.tokens % 32 == 0
        with plain.conversation() as expected, engine.conversation() as conversation:
            said = list(conversation.generate_tokens(tokens, 40))
            assert said == list(expected.generate_tokens(tokens, 40))
            assert conversation.stats.shared_tokens == info.tokens
            assert conversation.stats.computed_tokens == len(tokens) - info.tokens
            np.testing.assert_array_equal(conversation.logits([5]), expected.logits([5]))


def test_a_cache_of_int8_ships_too(tmp_path: Path) -> None:
    recipe = replace(recipe_with(SYSTEM), kv=KvRecipe("int8"))
    shipped = build(recipe, tmp_path / "shipped.bundle", write_prompt=write_prompt)
    require_whole(shipped)
    plain = build(replace(recipe, prompt=PromptRecipe()), tmp_path / "plain.bundle")
    logits = []
    for bundle, shared in ((plain, 0), (shipped, open_bundle(shipped).manifest.prompt.tokens)):
        with Engine(bundle, threads=2) as engine, engine.conversation() as conversation:
            list(conversation.generate(SYSTEM + " One day,", 8))
            assert conversation.stats.shared_tokens == shared
            logits.append(conversation.logits([5]))
    np.testing.assert_array_equal(*logits)


def test_two_builds_give_the_same_bytes(shipped: Path, tmp_path: Path) -> None:
    again = build(recipe_with(SYSTEM), tmp_path / "again.bundle", write_prompt=write_prompt)
    for name in ("manifest.json", "prompt/system.kv"):
        assert (again / name).read_bytes() == (shipped / name).read_bytes()


def test_a_phone_gets_the_same_blocks(shipped: Path, tmp_path: Path) -> None:
    recipe = recipe_with(SYSTEM, "android-arm64")
    phone = build(recipe, tmp_path / "phone.bundle", write_prompt=write_prompt)
    require_whole(phone)
    here, there = ((p / "prompt/system.kv").read_bytes() for p in (shipped, phone))
    assert here[128:] == there[128:]
    manifest = open_bundle(phone).manifest
    assert there[16:56] == bytes.fromhex(manifest.abi_hash + manifest.weights.identity)
    assert sorted(p.name for p in phone.iterdir()) == sorted(p.name for p in shipped.iterdir())


def test_a_pool_too_small_computes_it(shipped: Path) -> None:
    with Engine(shipped, threads=1, kv_blocks=1) as engine, engine.conversation() as conversation:
        assert len(list(conversation.generate_tokens([1, 403], 5))) == 5


def test_a_damaged_prompt_is_refused(shipped: Path, tmp_path: Path) -> None:
    place = shipped / "prompt" / "system.kv"
    data = place.read_bytes()
    try:
        place.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(RuntimeFailure, match="saved conversation is damaged"):
            Engine(shipped)
        place.write_bytes(data[:-1])
        with pytest.raises(BundleError, match="build or fetch the bundle again"):
            Engine(shipped)
    finally:
        place.write_bytes(data)


def test_prompts_that_cannot_ship(tmp_path: Path) -> None:
    out = tmp_path / "out.bundle"
    with pytest.raises(RecipeError, match="fewer than 32 tokens that every conversation starts"):
        build(recipe_with("Hello."), out, write_prompt=write_prompt)
    with pytest.raises(RecipeError, match="cannot be computed: .* do not fit"):
        build(recipe_with("Tim and Sam. " * 400), out, write_prompt=write_prompt)
    with pytest.raises(RecipeError, match="was given nothing to compute it"):
        build(recipe_with(SYSTEM), out)
    assert list(tmp_path.iterdir()) == []


def test_rebound_to_other_weights(shipped: Path, tmp_path: Path) -> None:
    place = tmp_path / "moved.kv"
    place.write_bytes((shipped / "prompt/system.kv").read_bytes())
    manifest = open_bundle(shipped).manifest
    with Engine(shipped) as engine:
        rebind(place, manifest.abi_hash, "ab" * 8)
        with pytest.raises(RuntimeFailure, match="with other weights of"):
            engine.restore(place)
        rebind(place, manifest.abi_hash, manifest.weights.identity)
        engine.restore(place).close()
    assert place.read_bytes() == (shipped / "prompt/system.kv").read_bytes()
    place.write_bytes(pack_weights_header("ab" * 32, 1))
    with pytest.raises(BundleError, match="not a saved conversation"):
        rebind(place, manifest.abi_hash, manifest.weights.identity)


def test_checksum_sees_every_bit() -> None:
    data = bytes(range(128))
    for bit in range(1024):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert checksum(bytes(changed)) != checksum(data)
