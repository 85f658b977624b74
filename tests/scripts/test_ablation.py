"""The ablation measures every arm and prints both tables. No times are asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "ablation.py"
PASSES = ("fold", "narrow", "fuse", "select", "tile", "plan_memory", "schedule")


def test_every_arm_is_measured(tmp_path: Path) -> None:
    options = ["--model", "stories260k", "-p", "8", "-n", "4", "--rounds", "1"]
    files = ["--json", str(tmp_path / "out.json"), "--keep", str(tmp_path / "kept")]
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *options, *files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    names = {"everything on", "decode loop in Python", "with drafts", "1 threads"}
    names.add("keys and values as f16")
    names |= {f"without {name}" for name in PASSES}
    assert names <= set(found["arms"])
    assert all(min(speeds.values()) > 0 for speeds in found["arms"].values())
    assert set(found["lengths"]) == {"1", "7", "33"}  # the context has no room for 511 padded
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(found["arms"]) + 2 + 3
    assert len({row.count("|") for row in rows[: 2 + len(found["arms"])]}) == 1
    assert len(list((tmp_path / "kept").glob("*.bundle"))) == 2 + len(PASSES)
