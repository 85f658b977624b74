"""Every recipe that ships is one that a build accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice import targets
from ondevice.quant.scheme import scheme_named
from ondevice.recipe import bundled_models, bundled_recipes, is_hub_name, load_recipe

NAMES = sorted(bundled_recipes())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_the_models_of_the_documentation_are_there() -> None:
    assert {"llama-7b", "smollm2-135m-instruct", "stories260k", "tinyllama-1.1b"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_a_checkpoint_named_by_the_user(name: str, checkpoint: Path) -> None:
    recipe = load_recipe(name, model=checkpoint)
    assert (recipe.name, recipe.model) == (name, str(checkpoint))
    targets.load(recipe.target)
    named = [recipe.quant.default, *(scheme for _, scheme in recipe.quant.rules)]
    embedding = recipe.quant.embedding
    for scheme in [*named, *([] if embedding == "auto" else [embedding])]:
        scheme_named(scheme)


@pytest.mark.parametrize("name", NAMES)
def test_its_weights_can_all_be_floats(name: str, checkpoint: Path) -> None:
    quant = load_recipe(name, model=checkpoint, settings=["quant.default=f32"]).quant
    assert (quant.default, quant.embedding, quant.rules) == ("f32", "auto", ())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stories260k"])
def test_its_model_is_one_of_the_hub(name: str) -> None:
    model = load_recipe(name).model
    assert is_hub_name(model)
    assert model in bundled_models()
