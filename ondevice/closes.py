"""What holds something until `close`, or until its `with` block is left."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closes:
    """A context manager by its own `close`, which may be called twice."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
