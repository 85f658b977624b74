"""What the machine can do at most, by a small C program."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("ceilings.c")


def compile_ceilings(cache: Path) -> Path:
    """The program, compiled for this CPU where it is missing or older than its source."""
    program = cache / "ceilings"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    cache.mkdir(parents=True, exist_ok=True)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native"]
    subprocess.run([*compiler, "-o", program, SOURCE, "-lpthread"], check=True)
    return program


def measure_ceilings(program: Path, cpus: Sequence[int]) -> dict[str, Any]:
    """Bytes per second from DRAM and from the last cache, 8-bit operations per second."""
    command = [program, ",".join(map(str, cpus))]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found
