"""`ondevice targets`: what can be built for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def targets(
    as_json: Annotated[bool, typer.Option("--json", help="Print the catalogue as JSON.")] = False,
) -> None:
    """List the targets, their files and CPU variants, best first; the last is what they demand."""
    from ondevice.errors import TargetError
    from ondevice.targets import load, names, planned

    rows = [load(name) for name in names() if name != "host"]
    try:
        here = load("host").name
    except TargetError:
        here = ""
    if as_json:
        print(json.dumps({"host": here, "targets": [asdict(row) for row in rows]}, indent=2))
        return
    for row in rows:
        print(f"{row.name}{' (host)' if row.name == here else ''}: {row.triple}")
        for variant in row.cpu.variants:
            print(f"  {variant.name:12} {variant.vector_bits:4} bits  {' '.join(variant.features)}")
    print(f"planned: {', '.join(planned())}")
