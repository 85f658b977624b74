"""Runs the command line as a user does: in its own process, from an unrelated directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Ondevice = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def ondevice(tmp_path_factory: pytest.TempPathFactory) -> Ondevice:
    """`ondevice("build", ...)`: the finished process with its output as text."""
    home = tmp_path_factory.mktemp("cli")

    def run(*arguments: str | Path, cwd: Path = home) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "ondevice", *map(str, arguments)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def stories(ondevice: Ondevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, built by the command line."""
    out = tmp_path_factory.mktemp("bundles") / "stories260k.bundle"
    done = ondevice("build", "stories260k", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    return out
