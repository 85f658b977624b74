"""`ondevice verify`: read every byte of a bundle and compare it with the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ondevice.cli.progress import Quiet, shown


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    quiet: Quiet = False,
) -> None:
    """Check every file of BUNDLE against its hashes; exit code 1 where one differs.

    With --quiet only what is wrong is printed.
    """
    from ondevice.bundle.verify import verify_bundle

    checks = verify_bundle(bundle, shown(quiet))
    for check in checks:
        if quiet and not check.problem:
            continue
        print(f"{'FAILED' if check.problem else 'ok':6}  {check.subject}", end="")
        print(f": {check.problem}" if check.problem else "")
    if any(check.problem for check in checks):
        raise typer.Exit(1)
