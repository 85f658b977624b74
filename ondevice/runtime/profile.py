"""Where the time of an engine's steps goes, launch by launch and worker by worker."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.closes import Closes
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeEngine

_PLACE = [("launch", c_int32), ("worker", c_int32)]
_TIMES = ("arrived_ns", "begin_ns", "end_ns")


class Row(ctypes.Structure):
    """od_profile_row."""

    _fields_ = [*_PLACE, *((name, c_int64) for name in ("runs", "chunks", "busy_ns", "wait_ns"))]


class Event(ctypes.Structure):
    """od_profile_event."""

    _fields_ = [*_PLACE, *((name, c_int64) for name in ("chunks", *_TIMES))]


class Profile(Closes):
    """Counts from when it is opened until it is closed; one at a time in an engine.

    `events` runs of each worker are kept, the last ones. Opening and reading raise RuntimeFailure
    while a conversation generates.
    """

    def __init__(self, engine: NativeEngine, events: int = 0) -> None:
        self._engine = engine
        self._call("start", events)

    def rows(self) -> NDArray[np.void]:
        """A row for each launch and worker, with the fields of od_profile_row."""
        return self._read("read", Row)

    def events(self) -> NDArray[np.void]:
        """The runs that were kept, worker by worker, with the fields of od_profile_event."""
        return self._read("events", Event)

    def close(self) -> None:
        """Count no more; closing twice, or after the engine, is allowed."""
        self._call("stop", passing=(Status.CLOSED, Status.FORKED))

    def _read(self, name: str, kind: type[ctypes.Structure]) -> NDArray[np.void]:
        count = c_int64()
        self._call(name, None, 0, ctypes.byref(count))
        found = np.zeros(count.value, np.dtype(kind))
        self._call(name, found.ctypes.data, len(found), ctypes.byref(count))
        return found

    def _call(self, name: str, *arguments: Any, passing: tuple[Status, ...] = ()) -> None:
        engine = self._engine
        engine.library.call(f"profile_{name}", engine._handle, *arguments, passing=passing)
