"""Compiled objects kept between builds, by a hash of everything that made them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ondevice import debug


def cached(parts: Iterable[str | bytes], make: Callable[[], bytes]) -> bytes:
    """What `make()` returns, kept under a key over `parts`: sources, command, tool versions.

    A directory that cannot be written only costs time. Two processes may make the same object; the
    last one to finish wins, and nobody ever sees half a file.
    """
    path = debug.cache_dir() / "objects" / _key(parts)
    try:
        return path.read_bytes()
    except OSError:
        data = make()
    with contextlib.suppress(OSError):
        _write(path, data)
    return data


def _key(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
