"""What of files the page cache holds, how to make it forget them, and limits for processes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

from peers.prepare import Missing

CHUNK_BYTES = 4 << 20


def files_of(artifact: Path) -> list[Path]:
    """Every file of a folder, or the file itself."""
    return [artifact] if artifact.is_file() else [p for p in artifact.rglob("*") if p.is_file()]


def cached_bytes(files: list[Path]) -> int:
    """Bytes of files in the page cache."""
    return sum(map(cached_of, files))


def cached_of(path: Path) -> int:
    size = path.stat().st_size
    if not size:
        return 0
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        try:
            status = mincore(ctypes.byref(start), ctypes.c_size_t(size), found)
        finally:
            del start
        if status:
            raise Missing(f"mincore fails: {os.strerror(ctypes.get_errno())}")
        return mmap.PAGESIZE * sum(page & 1 for page in bytes(found))


def forget(files: list[Path]) -> None:
    """Empty the page cache of files. Raises Missing where it keeps them."""
    if not hasattr(os, "posix_fadvise"):
        raise Missing("this system has no posix_fadvise: its page cache cannot be emptied")
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not yet written stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (left := cached_bytes(files)) > CHUNK_BYTES:
        raise Missing(f"{left >> 20} MB stay in the page cache: another process has them mapped")


def read_bytes_per_s(path: Path) -> float:
    """Speed of reading a file that the page cache does not hold, from its start to its end."""
    forget([path])
    started, buffer = time.perf_counter(), bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / (time.perf_counter() - started)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """A control group of that many bytes of memory, page cache included. Raises Missing.

    It lies below the caller's own, and is gone behind it. A process enters it by writing its
    number to `cgroup.procs`; what it had before is not counted.
    """
    parent, knob = memory_group()
    place = parent / f"bench-peers-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        raise Missing(f"no control group can be made in {parent}: {error.strerror}") from None
    try:
        try:
            (place / knob).write_text(str(size))
        except OSError as error:
            raise Missing(f"cannot set {place / knob}: {error.strerror}") from None
        for name, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", size)):
            with contextlib.suppress(OSError):  # there may be no swap to forbid
                (place / name).write_text(str(value))
        yield place
    finally:
        for _ in range(50):  # until the kernel has buried what was in it
            try:
                place.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def memory_group() -> tuple[Path, str]:
    """This process's control group with a memory controller, and the file of its limit."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return Path(f"/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"
            if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
                return Path(f"/sys/fs/cgroup{path}"), "memory.max"
    raise Missing("there are no control groups here that limit memory")
