"""`ondevice bench`: how fast a bundle is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", metavar="N,...", help="Prompt lengths; 0 for none.")
    ] = "512",
    generate: Annotated[
        str, typer.Option("-n", "--n-gen", metavar="N,...", help="Tokens to make; 0 for none.")
    ] = "128",
    depth: Annotated[
        str, typer.Option("-d", "--n-depth", metavar="N,...", help="Tokens that stand before.")
    ] = "0",
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", metavar="N,...", help="One per core by default."),
    ] = None,
    reps: Annotated[
        int, typer.Option("-r", "--repetitions", min=1, help="Measured runs of each test.")
    ] = 5,
    drafts: Annotated[
        bool, typer.Option("--drafts", help="Guess tokens from those before, as chats do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")] = False,
) -> None:
    """Measure prompt processing and generation; the table is llama-bench's."""
    from ondevice.gate.bench import bench as measure
    from ondevice.gate.bench import plan_tests, print_header, print_row

    tests = plan_tests(_numbers("-p", prompt), _numbers("-n", generate), _numbers("-d", depth))
    counts = (None,) if threads is None else _numbers("-t", threads, least=1)
    rows = measure(bundle, tests, counts, reps, drafts)
    if as_json:
        print(json.dumps([row.figures() for row in rows], indent=2))
        return
    for i, row in enumerate(rows):
        print(*((print_header(),) if i == 0 else ()), print_row(row), sep="\n", flush=True)


def _numbers(option: str, text: str, least: int = 0) -> list[int]:
    """The numbers of a list separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) >= least for part in parts):
        raise typer.BadParameter(f"{option} {text}: write numbers from {least} as 512,1024")
    return [int(part) for part in parts]
