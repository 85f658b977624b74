"""`ondevice eval`: how well a bundle predicts a text."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ondevice.gate.perplexity import Perplexity


class Score(StrEnum):
    """Which tokens of a window count."""

    half = "half"
    all = "all"


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A UTF-8 text to predict.")],
    score: Annotated[
        Score, typer.Option(help="Score the second half of each window, or all of it.")
    ] = Score.half,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a window; the bundle's context, at most 1024."),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Read only so many bytes of the text.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", min=1, help="One per core by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Print the perplexity of BUNDLE on a text, counted as llama-perplexity counts it."""
    from ondevice.gate.perplexity import perplexity, read_text

    started = monotonic()
    running = perplexity(
        bundle,
        read_text(text, max_bytes),
        context_tokens=context,
        score=score.value,
        threads=threads,
    )
    for result in running:
        _show_progress(result, monotonic() - started)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if as_json:
        print(json.dumps(_figures(result, score.value, monotonic() - started), indent=2))
    else:
        print(f"perplexity {result.value:.4f} +- {result.error:.4f}")


def _show_progress(result: Perplexity, elapsed_s: float) -> None:
    left_s = elapsed_s / result.windows * (result.windows_total - result.windows)
    print(
        f"{result.windows}/{result.windows_total} windows of {result.context_tokens} tokens, "
        f"perplexity {result.value:.4f}, {left_s:.0f} s left  ",
        end="\r" if sys.stderr.isatty() else "\n",  # a log keeps every line
        file=sys.stderr,
        flush=True,
    )


def _figures(result: Perplexity, score: str, elapsed_s: float) -> dict[str, object]:
    return {
        "perplexity": result.value,
        "error": result.error,
        "mean_nll": result.mean_nll,
        "score": score,
        "context_tokens": result.context_tokens,
        "windows": result.windows,
        "scored_tokens": result.scored_tokens,
        "elapsed_s": round(elapsed_s, 3),
    }
