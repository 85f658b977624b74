"""What counting instructions on arm64 makes of QEMU's blocks."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("count_arm_instructions")


def test_blocks_cut_by_the_emulator_are_joined(script: ModuleType) -> None:
    cut = [(0, 4, 1.0), (16, 100, 50.0), (416, 20, 50.1), (496, 3, 1.0), (508, 7, 50.0)]
    assert script.joined(cut) == [(0, 4, 1.0), (16, 120, 50.0), (496, 3, 1.0), (508, 7, 50.0)]


def test_products_are_those_of_the_instruction_set(script: ModuleType) -> None:
    lines = ["ldr q0, [x1]", "sdot v1.4s, v0.16b, v2.4b[0]", "smmla v3.4s, v0.16b, v2.16b"]
    assert script.products(lines) == 16 + 32


def test_runs_of_two_lengths_cancel_the_start(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import Counter

    def executed(library: Path, program: object, tokens: int) -> tuple[int, Counter[object]]:
        return 1000 + 70 * tokens, Counter({(0, 10): 100, (40, 35): 2 * tokens})

    monkeypatch.setattr(script, "executed", executed)
    counted = script.count(Path("x"), None, 4, 12)
    assert counted.instructions == 70 and counted.blocks[0] == (40, 35, 2.0)
