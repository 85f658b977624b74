"""How a long operation tells its caller how far it is; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

Advance = Callable[[int], None]


class Progress:
    """Receives the steps of an operation, one at a time; this one ignores them.

    Subclass it to show them. `advance` may be called by several threads at once, `end` is called
    after errors too.
    """

    def begin(self, step: str, total: int, unit: str, done: int = 0) -> None:
        """`step` names what is done; `total` of `unit` ("bytes", "files") make it up."""

    def advance(self, amount: int) -> None:
        """So much more of the step is done."""

    def end(self) -> None:
        """The step is over."""

    @contextmanager
    def step(self, step: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """A step from begin to end; yields `advance`."""
        self.begin(step, total, unit, done)
        try:
            yield self.advance
        finally:
            self.end()


SILENT = Progress()


def ignore(amount: int) -> None:
    """An `advance` for those who do not ask."""


class Seconds:
    """What each phase of an operation took, in order; each begins where the last one ended."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._begun = perf_counter()

    def end(self, phase: str) -> None:
        """The phase is over."""
        now = perf_counter()
        self.phases[phase] = now - self._begun
        self._begun = now

    def summary(self) -> str:
        """A line for people."""
        parts = [f"{name} {seconds:.2f}" for name, seconds in self.phases.items()]
        return ", ".join([f"seconds: total {sum(self.phases.values()):.2f}", *parts])
