"""A recipe: everything a build is asked for, as strict frozen dataclasses.

Every default stands here once. A `.toml` file, `--set` and the options of the command line all
edit this same object; a key it does not have is an error.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, Literal

from ondevice.errors import RecipeError, nearest
from ondevice.tables import Fail, convert_text, join, read_table

DEFAULT_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class QuantRecipe:
    """How weights are stored.

    `rules` maps globs over our weight names ("layers.*.mlp.down.weight") to schemes; the first that
    matches wins, then `embedding` for token embeddings and the head, then `default`. `embedding`
    is "auto" for int8_g256 where the default has fewer bits, else the default.
    """

    default: str = "int4_g32"
    embedding: str = "auto"
    activations: Literal["int8", "float"] = "int8"  # of matmuls whose weights are integers
    rules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class KvRecipe:
    """How keys and values are kept.

    int8 has a scale for each token and KV head, takes half the memory of f16, and lets attention
    multiply bytes. `auto` is int8 where matmuls do that too, f32 where weights are f32, else f16.
    """

    dtype: Literal["auto", "f32", "f16", "int8"] = "auto"


@dataclass(frozen=True)
class PromptRecipe:
    """`system` is a system prompt whose keys and values ship with the bundle, computed.

    Conversations that start with it, as the chat template writes it, do not compute it again. A
    model without a chat template takes it as the start of the text.
    """

    system: str = ""


@dataclass(frozen=True)
class PassesRecipe:
    """`disable` names passes that are to take their trivial form; tokens stay the same."""

    disable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One build.

    `model` is a checkpoint directory, or `org/name` or `org/name@revision` on the Hugging Face
    hub; `target` is a row of targets/catalog.toml.
    """

    name: str
    model: str
    target: str = "host"
    context_tokens: int = 0  # 0: the model's own, at most DEFAULT_CONTEXT_TOKENS
    prefill_chunk_tokens: int = 0  # the largest step; 0: 512, or fewer in a wide model
    quant: QuantRecipe = QuantRecipe()
    kv: KvRecipe = KvRecipe()
    prompt: PromptRecipe = PromptRecipe()
    passes: PassesRecipe = PassesRecipe()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise RecipeError(
                f"name = {self.name!r} must be letters, digits, '.', '_' and '-': it names files"
            )
        if self.context_tokens < 0:
            raise RecipeError(f"context_tokens = {self.context_tokens} must be 0 or more")
        if self.prefill_chunk_tokens < 0:
            raise RecipeError(
                f"prefill_chunk_tokens = {self.prefill_chunk_tokens} must be 0 or more"
            )

    def context_for(self, model_context_tokens: int) -> int:
        """The context to build for a model that was trained on `model_context_tokens`.

        Raises RecipeError where the recipe asks for more than the model has.
        """
        if self.context_tokens > model_context_tokens:
            raise RecipeError(
                f"context_tokens = {self.context_tokens} is more than the model's "
                f"{model_context_tokens}"
            )
        return self.context_tokens or min(model_context_tokens, DEFAULT_CONTEXT_TOKENS)


def load_recipe(
    name: str,
    *,
    model: str | Path | None = None,
    target: str | None = None,
    settings: Sequence[str] = (),
) -> Recipe:
    """The recipe that MODEL means, edited by the command line.

    `name` is a checkpoint directory (built with the default recipe), a `.toml` file, the name of a
    bundled recipe, or a model on the hub (the default recipe again). `model` replaces its
    checkpoint, `target` its target, and `settings` are `key=value` texts. The result's `model` is a
    directory that exists, or the name of a model on the hub. Raises RecipeError.
    """
    source, table, home = _find(name)
    recipe = read_table(Recipe, table, _failing(source))
    if target is not None:
        recipe = dataclasses.replace(recipe, target=target)
    for setting in settings:
        recipe = edit(recipe, setting)
    wanted = recipe.model if model is None else str(model)
    chosen = Path(wanted) if model is not None else home / wanted
    if isfile(chosen / "config.json"):  # which no name fails, however long
        wanted = str(chosen)
    elif isdir(chosen):
        raise RecipeError(
            f"{source}: {chosen} is not a checkpoint directory: it has no config.json"
        )
    elif not is_hub_name(wanted):
        raise RecipeError(
            f"{source}: there is no checkpoint directory {chosen}; name one that you have, or a "
            "model on the hub as org/name, with --model"
        )
    return dataclasses.replace(recipe, model=wanted)


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form `org/name` or `org/name@revision`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.][\w./-]*)?", name) is not None


def split_hub_name(name: str) -> tuple[str, str]:
    """(`org/name`, the revision, "main" where it names none)."""
    repo, _, revision = name.partition("@")
    return repo, revision or "main"


def edit(recipe: Recipe, setting: str) -> Recipe:
    """`recipe` with one `dotted.key=value` changed, the value converted to the key's type.

    Lists are separated by commas, `quant.rules` is written `glob=scheme,glob=scheme`.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise RecipeError(f"--set {setting}: write it as key=value, such as quant.default=f32")
    fail = _failing(f"--set {setting}")
    return typing.cast(Recipe, _edited(recipe, path.strip().split("."), text.strip(), fail, ""))


def bundled_recipes() -> dict[str, Path]:
    """The recipes that ship inside the package, by name."""
    folder = Path(str(files("ondevice.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def bundled_config(name: str) -> Path:
    """The config.json of a bundled recipe's model, which may not be here itself."""
    folder = Path(str(files("ondevice.recipes")))
    shape = folder / "shapes" / f"{name}.json"
    return shape if shape.is_file() else folder / load_recipe(name).model / "config.json"


def bundled_models() -> list[str]:
    """The models on the hub that the bundled recipes are for."""
    models = [_parse(path).get("model", "") for path in bundled_recipes().values()]
    return [model for model in models if is_hub_name(model)]


def _find(name: str) -> tuple[str, dict[str, Any], Path]:
    """(what to call it in messages, its table, the directory its paths are relative to)."""
    path = Path(name)
    if path.suffix == ".toml":
        return name, _parse(path), path.parent
    if isfile(path / "config.json"):
        return name, {"name": _file_name(path.resolve().name), "model": "."}, path
    bundled = bundled_recipes()
    if name in bundled:
        return name, _parse(bundled[name]), bundled[name].parent
    if isdir(path):
        raise RecipeError(f"{name} is no checkpoint directory: it has no config.json")
    if is_hub_name(name):
        repo, _ = split_hub_name(name)
        return name, {"name": _file_name(repo.partition("/")[2]), "model": name}, Path()
    raise RecipeError(
        f"{name!r} is no directory, no .toml file, no model on the hub (org/name) and no bundled "
        f"recipe{nearest(name, bundled)}"
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error


def _edited(value: Any, path: list[str], text: str, fail: Fail, at: str) -> Any:
    """The dataclass `value` with the field at `path` replaced by `text`, converted."""
    hints = typing.get_type_hints(type(value))
    key, rest = path[0], path[1:]
    if key not in hints:
        raise fail(f"unknown key {join(at, key)!r}{nearest(key, hints)}")
    at = join(at, key)
    if dataclasses.is_dataclass(getattr(value, key)):
        if not rest:
            raise fail(f"{at} is a table; name one of {', '.join(_keys_of(value, key))}")
        new = _edited(getattr(value, key), rest, text, fail, at)
    elif rest:
        raise fail(f"{at} is not a table: it has no key {rest[0]!r}")
    else:
        new = convert_text(hints[key], text, fail, at)
    return dataclasses.replace(value, **{key: new})


def _keys_of(value: Any, key: str) -> list[str]:
    """The full keys of the table `key`, for messages."""
    return [f"{key}.{field.name}" for field in dataclasses.fields(getattr(value, key))]


def _failing(source: str) -> Fail:
    return lambda message: RecipeError(f"{source}: {message}")


def _file_name(name: str) -> str:
    """`name` made fit for a recipe's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"
