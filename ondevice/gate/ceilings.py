"""What the machine can do at most, by a small C program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ondevice.errors import ToolchainError

SOURCE = Path(__file__).with_name("ceilings.c")


def compile_ceilings(cache: Path) -> Path:
    """The program, compiled for this CPU where it is missing or older than its source.

    Raises ToolchainError.
    """
    program = cache / "ceilings"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    cache.mkdir(parents=True, exist_ok=True)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native"]
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        partial = Path(directory) / "ceilings"
        done = subprocess.run(
            [*compiler, "-o", partial, SOURCE, "-lpthread"], capture_output=True, text=True
        )
        if done.returncode:
            raise ToolchainError(f"cannot compile {SOURCE.name}: {done.stderr.strip()}")
        os.replace(partial, program)
    return program


def measure_ceilings(program: Path, cpus: Sequence[int]) -> dict[str, Any]:
    """Bytes per second from DRAM and from the last cache, 8-bit operations per second.

    `int8_gop_per_s` is that of vector `instruction`s, `matrix_gop_per_s` that of the matrix unit, 0
    where there is none.
    """
    command = [str(program), ",".join(map(str, cpus))]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found
