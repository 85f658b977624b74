"""How a long operation tells its caller how far it is; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
