"""`ondevice recipes`: the bundled recipes, and what each would weigh on each target."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ondevice.errors import RecipeError, nearest
from ondevice.recipe import bundled_config, bundled_recipes, load_recipe

if TYPE_CHECKING:
    from ondevice.gate.predict import Prediction


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this recipe.")] = None,
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of each recipe."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
) -> None:
    """List the bundled recipes with predicted sizes; no checkpoint is needed for them.

    BUNDLE is the artifact, MEMORY what a process takes when its context is full: weights, buffers,
    keys and values.
    """
    from ondevice import targets
    from ondevice.gate.predict import predict, read_config

    if name is not None and name not in bundled_recipes():
        raise RecipeError(f"no bundled recipe {name!r}{nearest(name, bundled_recipes())}")
    names = [name] if name is not None else list(bundled_recipes())
    wanted = [target] if target is not None else [t for t in targets.names() if t != "host"]
    rows = []
    for recipe in names:
        config = read_config(bundled_config(recipe))
        loaded = load_recipe(recipe, settings=settings or ())
        rows += [predict(loaded, config, row) for row in wanted]
    if as_json:
        figures = [{**asdict(row), "memory_bytes": row.memory_bytes} for row in rows]
        print(json.dumps(figures, indent=2))
        return
    print(f"{'recipe':23} {'target':15} {'parameters':>13} {'context':>8}", end="")
    print(f" {'weights':>10} {'bundle':>10} {'memory':>10}")
    for row in rows:
        print(_line(row))


def _line(row: Prediction) -> str:
    sizes = (row.weights_bytes, row.bundle_bytes, row.memory_bytes)
    text = f"{row.recipe:23} {row.target:15} {row.parameters:13,} {row.context_tokens:8,}"
    return text + "".join(f" {size / 1e6:7,.1f} MB" for size in sizes)
