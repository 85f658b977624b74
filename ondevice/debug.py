"""Environment variables and dumps: the only module that reads `os.environ`.

Every variable is a row of VARIABLES and a typed function below it. None changes what a build
computes; they say where things lie and how much to show.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ondevice.errors import OndeviceError, nearest

VARIABLES: dict[str, str] = {
    "ONDEVICE_CACHE_DIR": "directory of compiled objects and of the demo's bundle",
    "ONDEVICE_RUNTIME_LIBRARY": "a libondevice to load in place of the bundle's (sanitizer runs)",
    "ONDEVICE_THREADS": "worker threads of an engine, where the caller names no number",
    "ONDEVICE_TRACEBACK": "1 shows Python's traceback behind a one-line error",
}


def cache_dir() -> Path:
    """Where compiled objects may be kept between runs; may not exist yet."""
    chosen = os.environ.get("ONDEVICE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ondevice"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ondevice"


def runtime_library() -> Path | None:
    """A C runtime to load in place of the bundle's own, or None."""
    chosen = os.environ.get("ONDEVICE_RUNTIME_LIBRARY")
    return Path(chosen) if chosen else None


def threads() -> int:
    """Worker threads asked for, or 0 to leave the choice to the engine."""
    text = os.environ.get("ONDEVICE_THREADS", "0")
    if not text.isdecimal():
        raise OndeviceError(f"ONDEVICE_THREADS must be a number of threads, not {text!r}")
    return int(text)


def traceback() -> bool:
    """Whether the command line shows the traceback of an error."""
    return os.environ.get("ONDEVICE_TRACEBACK", "") not in ("", "0")


def check_variables() -> None:
    """Raise OndeviceError where the environment holds an ONDEVICE_ variable nobody reads."""
    for name in sorted(os.environ):
        if name.startswith("ONDEVICE_") and name not in VARIABLES:
            hint = nearest(name, VARIABLES)
            raise OndeviceError(f"unknown environment variable {name}{hint}")


class Dump:
    """A directory that receives every stage of a build as text (`--dump DIR`).

    `stage` numbers its files in the order of the calls: 00-trace.graph, 01-canonicalize.graph, ...
    Stages of an earlier build in the same directory are removed, so that what lies there is always
    one build.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stages = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for old in (*directory.glob("[0-9][0-9]-*"), *directory.glob("quant.tsv")):
                old.unlink()
            shutil.rmtree(directory / "kernels", ignore_errors=True)
        except OSError as error:
            raise OndeviceError(f"cannot dump into {directory}: {error.strerror}") from error

    def stage(self, name: str, kind: str, text: str) -> Path:
        """Write the next stage as `NN-name.kind`."""
        path = self.file(f"{self._stages:02}-{name}.{kind}", text)
        self._stages += 1
        return path

    def file(self, name: str, text: str) -> Path:
        """Write `text` under the relative path `name`, e.g. "kernels/gemv_f32.kir"."""
        path = self.directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        except OSError as error:
            raise OndeviceError(f"cannot write {path}: {error.strerror}") from error
        return path
