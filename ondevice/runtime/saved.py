"""Saved conversations as files: complete or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeConversation, NativeEngine


def save_conversation(conversation: NativeConversation, path: Path) -> None:
    """Write `conversation`, at rest, to `path`. Raises RuntimeFailure."""
    with _replacing(path) as file:
        conversation.save(file)


def restore_conversation(engine: NativeEngine, path: Path) -> NativeConversation:
    """The conversation that was saved to `path`. Raises RuntimeFailure."""
    try:
        with path.open("rb") as file:
            return engine.restore(file.fileno())
    except OSError as error:
        raise RuntimeFailure(
            f"cannot read the saved conversation {path}: {error.strerror}", Status.FILE
        ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """A descriptor whose file takes the place of `path` once all is on the disk."""
    try:
        file, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
        try:
            yield file
            os.fsync(file)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
        finally:
            os.close(file)
    except OSError as error:
        raise RuntimeFailure(
            f"cannot save the conversation to {path}: {error.strerror or error}", Status.FILE
        ) from error
