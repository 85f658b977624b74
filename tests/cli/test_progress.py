"""Progress reaches whoever asks, counts everything once, and is silent where nothing takes long."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ondevice.build import build
from ondevice.cli import progress as shown
from ondevice.progress import Progress
from ondevice.recipe import load_recipe


class Recorder(Progress):
    def __init__(self) -> None:
        self.steps: dict[str, tuple[int, str]] = {}
        self.done: dict[str, int] = {}
        self.current = ""

    def begin(self, step: str, total: int, unit: str, done: int = 0) -> None:
        assert not self.current, "one step at a time"
        self.current = step
        self.steps[step], self.done[step] = (total, unit), done

    def advance(self, amount: int) -> None:
        self.done[self.current] += amount

    def end(self) -> None:
        self.current = ""


def test_a_build_tells_its_steps(tmp_path: Path) -> None:
    heard = Recorder()
    bundle = build(load_recipe("stories260k"), tmp_path / "x", progress=heard)
    assert list(heard.steps) == ["kernels", "runtime", "weights"]
    assert heard.done == {step: total for step, (total, _) in heard.steps.items()}
    weights = (bundle / "weights.bin").stat().st_size
    assert heard.steps["weights"] == (weights - 64, "bytes")


def test_a_step_ends_where_it_fails() -> None:
    heard = Recorder()
    with pytest.raises(KeyError), heard.step("weights", 4, "bytes") as advance:
        advance(1)
        raise KeyError
    assert heard.current == ""


def lines(*moments: float, done: int = 0) -> list[str]:
    out, times = io.StringIO(), iter(moments)
    progress = shown.Lines(out, lambda: next(times))
    with progress.step("weights", 1000, "bytes", done) as advance:
        for _ in moments[1:-1]:
            advance(100)
    return out.getvalue().splitlines()


def test_quick_steps_print_nothing() -> None:
    assert lines(0, 1, 2, 3, 4) == []


def test_a_line_now_and_then_with_the_time_left() -> None:
    assert lines(0, 5, 10, 15, 21, 22, 30) == [
        "weights: 20% of 1,000 bytes, 40 s left",
        "weights: 40% of 1,000 bytes, 32 s left",
        "weights: 500 bytes in 30 s",
    ]


def test_what_was_done_before_says_nothing_of_the_speed() -> None:
    assert lines(0, 10, 10, done=500)[0] == "weights: 60% of 1,000 bytes, 40 s left"


def test_the_bar_counts_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    bar = shown.Bar()
    for unit in ("bytes", "files"):
        with bar.step("weights", 2000, unit) as advance:
            advance(2000)
    assert "weights" in capsys.readouterr().err
    bar.advance(1)  # late, from another thread: nothing to show, no harm
