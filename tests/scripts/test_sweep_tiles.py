"""The sweep times the compiler's own tile among others. No times are asserted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "sweep_tiles.py"


def test_the_chosen_tile_is_among_the_timed(tmp_path: Path) -> None:
    shapes = ["--shape", "1x256x64", "--shape", "40x256x64"]
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *shapes, "--rounds", "1", "--json", "out.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    if "runs no variant" in done.stderr:
        pytest.skip("this machine runs no variant of its target")
    assert done.returncode == 0, done.stderr
    for row in json.loads((tmp_path / "out.json").read_text()):
        tiles = [candidate["tile"] for candidate in row["tiles"]]
        assert row["chosen"] in tiles and len(tiles) > 1
        assert len({json.dumps(tile) for tile in tiles}) == len(tiles)
        times = [candidate["us"] for candidate in row["tiles"]]
        assert times[0] > 0 and times == sorted(times)
    assert done.stdout.count("\n") == 2 + 2


def test_all_tiles_of_a_model_are_constructed() -> None:
    command = [sys.executable, "-P", str(SCRIPT), "--construct", "llama-7b", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"llama-7b: (\d+) tiles of (\d+) nodes in [\d.]+ ms\n", done.stdout)
    assert found and int(found[1]) > int(found[2]) > 32 * 7  # matrices of 32 layers
