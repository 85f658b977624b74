"""A short, fixed part of what scripts/fuzz.py tries: damaged files are read or refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from ondevice.errors import GraphError, RecipeError

LoadScript = Callable[[str], ModuleType]

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"
QUICK = ("safetensors", "shards", "recipe", "settings", "checkpoint", "tokenizer", "bundle", "code")


def test_damaged_files_are_read_or_refused() -> None:
    command = [sys.executable, str(SCRIPT), *QUICK, "--count", "200", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 findings") == len(QUICK)


@pytest.mark.parametrize(
    ("error", "is_finding"),
    [
        (None, False),
        (RecipeError("one line"), False),
        (GraphError("a message\nand the line"), False),
        (RecipeError("two\nlines"), True),
        (ValueError("from deep inside"), True),
        (MemoryError(), True),
        (SystemExit(0), True),
    ],
)
def test_what_counts_as_a_finding(
    load_script: LoadScript, error: BaseException | None, is_finding: bool, tmp_path: Path
) -> None:
    def read(folder: Path) -> None:
        if error is not None:
            raise error

    fuzz = load_script("fuzz")
    found = fuzz.problem(fuzz.Reader("x", lambda folder: None, {}, read), tmp_path)
    assert found is (error if is_finding else None)


def test_a_number_says_every_byte(load_script: LoadScript) -> None:
    """The same input again, and no two of the first hundred alike."""
    damages = load_script("fuzzing.damage")
    tensors = {"a": ("F32", [3, 4]), "b": ("F16", [5])}
    intact = load_script("fuzzing.readers").safetensors_file(tensors)
    for damage in (damages.damage_bytes, damages.damage_safetensors):
        inputs = [damage(Random(f"x {seed}"), intact) for seed in range(100)]
        assert inputs == [damage(Random(f"x {seed}"), intact) for seed in range(100)]
        assert len(set(inputs)) > 80


def test_messages_are_short() -> None:
    message = str(RecipeError("a" * 70000 + " is no name"))
    assert len(message) < 2000 and message.endswith("is no name")
