"""The stories that come out: always the same ones."""

from __future__ import annotations

from ondevice.passes import PASS_NAMES
from ondevice.runtime.engine import Engine

from .conftest import PROMPT, Build

# 64 greedy tokens after "Once upon a time".
STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
    "a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said"
)


def text(engine: Engine, prompt: str = PROMPT, **sampling: float) -> str:
    return "".join(engine.generate(prompt, max_tokens=64, **sampling))


def test_greedy_story(engine: Engine) -> None:
    assert text(engine) == STORY


def test_greedy_story_of_a_build_without_passes(built: Build) -> None:
    with Engine(built(f"passes.disable={','.join(PASS_NAMES)}").bundle) as engine:
        assert text(engine) == STORY


def test_seeds_tell_stories_apart(engine: Engine) -> None:
    assert text(engine, temperature=1.0, seed=1) != text(engine, temperature=1.0, seed=2)


def test_same_seed_same_story(engine: Engine) -> None:
    assert text(engine, temperature=1.0, seed=1) == text(engine, temperature=1.0, seed=1)
