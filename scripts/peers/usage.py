"""Time and memory of a program together with everything that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
INTERVAL_S = 0.03
SHARES_EVERY = 5  # proportional sizes cost the kernel more: only every so many samples


@dataclass
class Usage:
    """Peaks are of sums over all processes that ran at the same time.

    The resident size counts what is mapped of files, and what processes share once for each; the
    proportional size splits what they share.
    """

    seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_pss_bytes: int = 0


def run_watched(words: Sequence[Any], **options: Any) -> tuple[int, Usage]:
    """Run a program to its end: exit status and usage. `options` are Popen's."""
    usage, started, done = Usage(), time.monotonic(), threading.Event()
    with subprocess.Popen(list(map(str, words)), **options) as process:
        watcher = threading.Thread(target=watch, args=(process.pid, usage, done))
        watcher.start()
        try:
            status = process.wait()
        finally:
            usage.seconds = time.monotonic() - started
            done.set()
            watcher.join()
    return status, usage


def watch(root: int, usage: Usage, done: threading.Event) -> None:
    """Note the peaks until `done`."""
    count = 0
    while not done.wait(INTERVAL_S):
        family = descendants(root)
        usage.peak_rss_bytes = max(usage.peak_rss_bytes, sum(map(resident_bytes, family)))
        if count % SHARES_EVERY == 0:
            usage.peak_pss_bytes = max(usage.peak_pss_bytes, sum(map(share_bytes, family)))
        count += 1


def descendants(root: int) -> list[int]:
    """`root` and every process that it or one of those started."""
    found = [root]
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                children = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                found += map(int, children.split())
        except OSError:  # it ended
            continue
    return found


def resident_bytes(pid: int) -> int:
    try:
        return PAGE_BYTES * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def share_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
