"""Bundles of the model that ships with the package, each built once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ondevice import targets
from ondevice.build import build
from ondevice.debug import Dump
from ondevice.recipe import load_recipe
from ondevice.runtime.engine import Engine
from ondevice.targets.detect import host_features

PROMPT = "Once upon a time"


@dataclass(frozen=True)
class Built:
    bundle: Path
    dump: Path


Build = Callable[..., Built]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`built("kv.dtype=f16", ...)`: stories260K with these settings, and what its build dumped."""
    known: dict[tuple[str, ...], Built] = {}

    def once(*settings: str) -> Built:
        if settings not in known:
            home = tmp_path_factory.mktemp("stories")
            recipe = load_recipe("stories260k", settings=settings)
            bundle = build(recipe, home / "stories.bundle", Dump(home / "dump"))
            known[settings] = Built(bundle, home / "dump")
        return known[settings]

    return once


@pytest.fixture(scope="session")
def stories(built: Build) -> Path:
    """The bundle as the recipe has it."""
    return built().bundle


@pytest.fixture(scope="session")
def engine(stories: Path) -> Iterator[Engine]:
    with Engine(stories, threads=2) as engine:
        yield engine


@pytest.fixture(scope="session")
def story(engine: Engine) -> list[int]:
    """300 tokens: a beginning, and how the model goes on."""
    beginning = engine.tokenizer.encode(PROMPT)
    rest = engine.generate_tokens(beginning, max_tokens=300 - len(beginning))
    tokens = [*beginning, *rest]
    assert len(tokens) == 300
    return tokens


@pytest.fixture(params=[v.name for v in targets.load("host").cpu.variants])
def variant(request: pytest.FixtureRequest) -> str:
    """Each CPU variant of the library that this machine runs."""
    rows = {v.name: v for v in targets.load("host").cpu.variants}
    if not host_features().issuperset(rows[request.param].features):
        pytest.skip(f"this machine does not run {request.param}")
    return str(request.param)
