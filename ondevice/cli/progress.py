"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ondevice.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

INTERVAL_S = 10.0  # between two lines

Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Show no progress and no figures on standard error.")
]


def shown(quiet: bool) -> Progress:
    """What a command hands to the operation that it runs."""
    if quiet:
        return SILENT
    return Bar() if sys.stderr.isatty() else Lines(sys.stderr)


class Bar(Progress):
    """A bar with amounts and the time left; the bar of a finished step stays."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def begin(self, step: str, total: int, unit: str, done: int = 0) -> None:
        from rich import progress
        from rich.console import Console

        amounts: list[progress.ProgressColumn] = [progress.MofNCompleteColumn()]
        if unit == "bytes":
            amounts = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        else:
            amounts.append(progress.TextColumn(unit))
        self._bars = progress.Progress(
            progress.TextColumn("{task.description:12}"),
            progress.BarColumn(),
            *amounts,
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        self._task = self._bars.add_task(step, total=total, completed=done)
        self._bars.start()

    def advance(self, amount: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, amount)

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None


class Lines(Progress):
    """A line every INTERVAL_S, and none for steps that are over before."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = monotonic) -> None:
        self._out = out
        self._clock = clock
        self._lock = threading.Lock()

    def begin(self, step: str, total: int, unit: str, done: int = 0) -> None:
        self._step, self._total, self._unit = step, total, unit
        self._before = self._done = done
        self._began = self._told = self._clock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = self._clock()
            if now - self._told < INTERVAL_S:
                return
            self._told = now
            elapsed, moved = now - self._began, self._done - self._before
            left = elapsed / moved * (self._total - self._done) if moved else 0.0
            self._say(
                f"{100 * self._done // max(1, self._total)}% of {self._total:,} {self._unit}, "
                f"{left:.0f} s left"
            )

    def end(self) -> None:
        if self._told > self._began:
            self._say(f"{self._done:,} {self._unit} in {self._clock() - self._began:.0f} s")

    def _say(self, text: str) -> None:
        print(f"{self._step}: {text}", file=self._out, flush=True)
