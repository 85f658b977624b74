"""`ondevice build`: compile a model into a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ondevice.cli.progress import Quiet, shown

if TYPE_CHECKING:
    from ondevice.debug import Dump
    from ondevice.recipe import Recipe


def build(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A directory with config.json, a recipe file, a bundled recipe's name, or "
            "org/name[@revision] on the Hugging Face hub.",
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="What to build for; the recipe's by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle directory; NAME.bundle by default.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The checkpoint (a directory or org/name)."),
    ] = None,
    dump: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every stage of the build here.")
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option(metavar="PASS", help="Stop after this pass; needs --dump.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write errors of tensors, tiles and predicted times as JSON."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compile MODEL; the last line printed is the bundle directory."""
    from ondevice.debug import Dump
    from ondevice.recipe import load_recipe

    if stop_after is not None and dump is None:
        raise typer.BadParameter("--stop-after shows nothing without --dump DIR")
    if stop_after is not None and report is not None:
        raise typer.BadParameter("--report needs the whole build, without --stop-after")
    recipe = load_recipe(model, model=checkpoint, target=target, settings=settings or ())

    place = out or Path(f"{recipe.name}.bundle")
    print(
        _built(recipe, place, Dump(dump) if dump is not None else None, stop_after, report, quiet)
    )


def _built(
    recipe: Recipe,
    place: Path,
    dump: Dump | None,
    stop_after: str | None,
    report: Path | None,
    quiet: bool,
) -> Path:
    """Build, and say on standard error and in `report` what was made."""
    from ondevice.build import build as compile_model  # imports the compiler: a good half second
    from ondevice.bundle.read import open_bundle
    from ondevice.bundle.write import partial_of
    from ondevice.gate.prompt import write_prompt
    from ondevice.quant.report import QuantReport

    figures = QuantReport()
    try:
        built = compile_model(recipe, place, dump, stop_after, figures, shown(quiet), write_prompt)
    except KeyboardInterrupt:
        kept = partial_of(place)
        hint = f"; the same command goes on with {kept}" if kept.is_dir() else ""
        print(f"ondevice: interrupted{hint}", file=sys.stderr)
        raise
    if stop_after is None and not quiet:
        print(figures.summary(), file=sys.stderr)
        for note in open_bundle(built).manifest.tokenizer.notes:
            print(note, file=sys.stderr)
    if report is not None:
        figures.write(report)
    return built
