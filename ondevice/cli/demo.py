"""`ondevice demo`: build the model inside the package, once, and tell a story."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ondevice.cli.progress import shown

RECIPE = "stories260k"


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another story.")] = 0,
    prompt: Annotated[str, typer.Option(help="How the story begins.")] = "Once upon a time",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many tokens; 256 by default.")
    ] = None,
) -> None:
    """Build the small model that ships with ondevice and tell a story."""
    from ondevice.cli.continuation import print_continuation

    bundle = _demo_bundle()
    print(prompt, end="", flush=True)
    print_continuation(bundle, prompt, max_tokens, temperature=0.8, seed=seed)


def _demo_bundle() -> Path:
    """The demo's bundle in the cache directory; built where this very package has not yet."""
    from ondevice import debug
    from ondevice.package import package_hash
    from ondevice.recipe import load_recipe

    bundle = debug.cache_dir() / "demo" / f"{RECIPE}-{package_hash()[:16]}.bundle"
    if not bundle.is_dir():
        print(f"Building {RECIPE} ...", file=sys.stderr)
        from ondevice.build import build

        build(load_recipe(RECIPE), bundle, progress=shown(quiet=False))
    return bundle
