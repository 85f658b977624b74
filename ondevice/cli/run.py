"""`ondevice run`: continue a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    prompt: Annotated[
        str | None, typer.Option(help="What to continue; read from standard input by default.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many tokens; 256 by default, if there is room."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Worker threads; one per core by default.")
    ] = None,
) -> None:
    """Print the continuation of a prompt, and nothing else, on standard output."""
    from ondevice.cli.continuation import print_continuation

    text = prompt if prompt is not None else sys.stdin.buffer.read()
    print_continuation(bundle, text, max_tokens, temperature, seed, threads)
