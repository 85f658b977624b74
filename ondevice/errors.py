"""Every error a user can meet is an `OndeviceError`: one sentence that says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MESSAGE_LETTERS = 1900


class OndeviceError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""

    def __str__(self) -> str:
        """The message, without the middle of one that quotes something huge."""
        text = super().__str__()
        return text if len(text) <= MESSAGE_LETTERS else f"{text[:1000]} [...] {text[-500:]}"


class RecipeError(OndeviceError):
    """A recipe or a `--set` names an unknown key or gives a value of the wrong type."""


class CheckpointError(OndeviceError):
    """A checkpoint is missing, truncated, inconsistent or of an unknown architecture."""


class GraphError(OndeviceError):
    """A graph breaks a rule of its ops (found by verify or by the text parser)."""


class KernelError(OndeviceError):
    """A kernel uses a construct the language does not have; shows the source line with a caret."""


class TargetError(OndeviceError):
    """A target is unknown, or lacks what a program needs."""


class ToolchainError(OndeviceError):
    """A compiler or linker of the toolchain failed or is missing."""


class BundleError(OndeviceError):
    """A bundle is incomplete, damaged, or does not match its library."""


class RuntimeFailure(OndeviceError):
    """The C runtime refused a call; `status` is its `od_status`."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'x'? known: x, y` for error messages."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(known)}"
