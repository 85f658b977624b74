"""Recipes are strict: what is not understood is refused, with the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice.errors import RecipeError
from ondevice.recipe import (
    QuantRecipe,
    Recipe,
    edit,
    is_hub_name,
    load_recipe,
    split_hub_name,
)
from ondevice.tables import read_table, write_table


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "My model (v2)"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def recipe_file(folder: Path, text: str) -> str:
    path = folder / "some.toml"
    path.write_text(text)
    return str(path)


def test_a_directory_builds_with_the_defaults(checkpoint: Path) -> None:
    recipe = load_recipe(str(checkpoint))
    assert recipe == Recipe(name="My-model-v2", model=str(checkpoint))
    assert (recipe.target, recipe.quant.default, recipe.kv.dtype) == (
        "host",
        QuantRecipe().default,
        "auto",
    )


def test_the_bundled_recipe_names_a_checkpoint_inside_the_package() -> None:
    recipe = load_recipe("stories260k")
    assert recipe.name == "stories260k"
    assert (Path(recipe.model) / "model.safetensors").is_file()
    assert (Path(recipe.model) / "LICENSE.MIT").is_file()


def test_a_file_sets_every_key(checkpoint: Path) -> None:
    name = recipe_file(
        checkpoint.parent,
        """
        name = "full"
        model = "My model (v2)"  # beside this file
        target = "linux-x86_64"
        context_tokens = 1024
        prefill_chunk_tokens = 64
        [quant]
        default = "int8_g256"
        activations = "float"
        rules = { "layers.*.mlp.*" = "int4_g32", "head" = "f32" }
        [kv]
        dtype = "f16"
        [passes]
        disable = ["fuse", "fold"]
        """,
    )
    recipe = load_recipe(name)
    assert recipe.model == str(checkpoint)
    assert recipe.quant.rules == (("layers.*.mlp.*", "int4_g32"), ("head", "f32"))
    assert recipe.passes.disable == ("fuse", "fold")
    assert read_table(Recipe, write_table(recipe), RecipeError) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "m"', "key 'name' is missing"),
        ('name = "x"\nmodel = "m"\ncontxt_tokens = 3', "did you mean 'context_tokens'"),
        ('name = "x"\nmodel = "m"\n[quant]\ndefalt = "f32"', "unknown key 'quant.defalt'"),
        ('name = "x"\nmodel = "m"\ncontext_tokens = "3"', "context_tokens = '3' must be a whole"),
        ('name = "x"\nmodel = "m"\ncontext_tokens = true', "must be a whole number, not true or"),
        ('name = "x"\nmodel = "m"\nkv = "f16"', "kv must be a table, not text"),
        ('name = "x"\nmodel = "m"\n[kv]\ndtype = "f8"', "must be one of auto, f32, f16, int8"),
        ('name = "x"\nmodel = "m"\n[passes]\ndisable = "fuse"', "passes.disable must be a list"),
        ('name = "x/y"\nmodel = "m"', "it names files"),
        ('name = "x"\nmodel = "m"', "there is no checkpoint directory"),
        ("name = ", "is not TOML"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stories260", "did you mean 'stories260k'"),
        ("a/b/c", "no directory, no .toml file, no model on the hub"),
        ("missing.toml", "cannot read recipe"),
        (".", "no config.json"),
    ],
)
def test_what_model_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        load_recipe(name)


@pytest.mark.parametrize("name", ["org/Some.Model-7B", "org/Some.Model-7B@v1.0"])
def test_a_name_on_the_hub_builds_with_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name) == Recipe(name="Some.Model-7B", model=name)
    assert load_recipe("stories260k", model=name).model == name
    (tmp_path / "org" / "Some.Model-7B").mkdir(parents=True)
    if "@" not in name:
        with pytest.raises(RecipeError, match=r"no config\.json"):
            load_recipe(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("org/a", ("org/a", "main")), ("org/a@refs/pr/1", ("org/a", "refs/pr/1"))],
)
def test_names_on_the_hub(name: str, parts: tuple[str, str]) -> None:
    assert is_hub_name(name)
    assert split_hub_name(name) == parts
    for other in ("a", "a/b/c", "/a/b", "../a", "a/", "a/b@", "a b/c"):
        assert not is_hub_name(other)


def test_the_command_line_edits_the_same_object(checkpoint: Path) -> None:
    recipe = load_recipe(
        "stories260k",
        model=checkpoint,
        target="linux-x86_64",
        settings=[
            "quant.default = int8_g256",
            "context_tokens=77",
            "passes.disable=fuse,fold",
            "quant.rules=head=f32, layers.*=int4_g32",
        ],
    )
    assert recipe == Recipe(
        name="stories260k",
        model=str(checkpoint),
        target="linux-x86_64",
        context_tokens=77,
        quant=QuantRecipe("int8_g256", rules=(("head", "f32"), ("layers.*", "int4_g32"))),
        passes=type(recipe.passes)(("fuse", "fold")),
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("quant.default", "write it as key=value"),
        ("quant=f32", "quant is a table; name one of quant.default"),
        ("quant.defaults=f32", "did you mean 'default'"),
        ("target.name=x", "target is not a table"),
        ("context_tokens=many", "must be a whole number, not text"),
        ("context_tokens=-1", "must be 0 or more"),
        ("prefill_chunk_tokens=-1", "must be 0 or more"),
        ("quant.activations=int4", "must be one of int8, float"),
        ("quant.rules=head", "key=value,key=value"),
    ],
)
def test_settings_are_checked(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        edit(Recipe("x", "m"), setting)


def test_context_is_the_models_up_to_a_limit() -> None:
    recipe = Recipe("x", "m")
    assert recipe.context_for(512) == 512
    assert recipe.context_for(131072) == 4096
    assert edit(recipe, "context_tokens=8192").context_for(131072) == 8192
    with pytest.raises(RecipeError, match="more than the model's 512"):
        edit(recipe, "context_tokens=600").context_for(512)
