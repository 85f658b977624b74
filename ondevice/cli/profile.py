"""`ondevice profile`: where a bundle's time goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ondevice.errors import OndeviceError


def profile(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    prompt: Annotated[
        int, typer.Option("-p", "--n-prompt", min=0, help="Tokens of the prompt; 0 for none.")
    ] = 512,
    generate: Annotated[
        int, typer.Option("-n", "--n-gen", min=0, help="Tokens to make; 0 for none.")
    ] = 128,
    depth: Annotated[
        int, typer.Option("-d", "--n-depth", min=0, help="Tokens that stand before.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", min=1, help="One per core by default.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What build --report wrote: show the times it predicted, too."
        ),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every launch as JSON.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a step as a trace for chrome://tracing.", metavar="FILE"),
    ] = None,
) -> None:
    """Show time, bytes and fraction of the machine's ceilings for each part of the model."""
    from ondevice.gate.profile import profile as measure
    from ondevice.gate.profile_text import chrome_trace, print_report

    measured = measure(bundle, prompt, generate, depth, threads, report)
    if as_json is not None:
        _write(as_json, measured.figures())
    if trace is not None:
        _write(trace, chrome_trace(measured))
    print(print_report(measured))


def _write(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OndeviceError(f"cannot write {path}: {error.strerror}") from error
