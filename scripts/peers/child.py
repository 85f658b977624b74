"""The tests of one peer in a process of its own; `run_PEER.py` brings the peer.

    python run_PEER.py JOB

JOB is a JSON object: `path` of the model, `threads`, `cpus` to stay on, `context`, `options` of the
peer, `cgroup` whose limits hold from before the model is opened, and one of `tests`, `start`, what
a process begins with, or `windows`, a file of token windows whose perplexity is asked. The last
line printed is a JSON object. Nothing but Python and NumPy is imported: every environment has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

WARM_TOKENS = 16
ENOUGH_S = 2.5  # a test is repeated until it took so long, or `reps` times
# ends with the process that started it
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10_000))"


@dataclass(frozen=True)
class Moment:
    """Wall time and CPU time of all threads of the process, in seconds."""

    wall_s: float
    cpu_s: float


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


class Peer(Protocol):
    """A loaded model."""

    def generate(self, prompt: Sequence[int], count: int) -> list[Moment]:
        """Begin a new text and generate `count` tokens: when each was there."""
        ...

    def logits(self, window: Sequence[int]) -> Any:
        """Logits [len(window), vocab] of a text, as float32."""
        ...


def main(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Do what the command line asks."""
    job = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])
    if "cgroup" in job:
        (Path(job["cgroup"]) / "cgroup.procs").write_text(str(os.getpid()))
    before, started = private_dirty_bytes(), now()
    peer = load(job)
    result: dict[str, Any] = {"load_s": now().wall_s - started.wall_s}
    if "windows" in job:
        with open(job["windows"]) as file:
            result |= perplexity(peer, json.load(file))
    elif "start" in job:
        (first,) = peer.generate(prompt(job["start"]["prompt"], 0), 1)
        result["first_token_s"] = first.wall_s - started.wall_s
        peer.generate(prompt(job["start"]["memory"], 1), WARM_TOKENS)
        result["private_dirty_bytes"] = private_dirty_bytes() - before
    else:
        result["tests"] = {
            test["name"]: measure(peer, test, job["cpus"]) for test in job.get("tests", ())
        }
    result["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(result), flush=True)
    os._exit(0)  # some peers crash in their destructors, with everything done


def private_dirty_bytes(process: int | str = "self") -> int:
    """Memory of a process that cannot be dropped and read again; 0 where nobody says it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return 1024 * int(line.split()[1])
    return 0


def measure(peer: Peer, test: dict[str, Any], cpus: Sequence[int]) -> dict[str, float]:
    """Medians of `reps` repetitions of {"prompt": tokens, "generate": tokens, "reps": n}.

    Where nothing is generated but the token behind the prompt, the prompt is what is timed,
    otherwise the tokens behind the first. With "busy" a foreign process keeps the last of the
    cores busy.
    """
    decodes = test["generate"] > 1
    if test["reps"] > 1 or not decodes:
        warm = min(test["generate"], WARM_TOKENS)
        peer.generate(prompt(test["prompt"], 0), warm)  # some compile at the first prompt
    speeds, cpu, gaps, elapsed = [], [], [], 0.0
    with busy_core(cpus[-1]) if test.get("busy") else contextlib.nullcontext():
        for i in range(test["reps"]):
            begin = now()
            moments = peer.generate(prompt(test["prompt"], i + 1), test["generate"])
            times = moments if decodes else [begin, moments[0]]
            tokens = len(moments) - 1 if decodes else test["prompt"]
            speeds.append(tokens / (times[-1].wall_s - times[0].wall_s))
            cpu.append((times[-1].cpu_s - times[0].cpu_s) / tokens)
            gaps += np.diff([moment.wall_s for moment in times]).tolist()
            elapsed += moments[-1].wall_s - begin.wall_s
            if elapsed > ENOUGH_S:
                break
    return {"tokens_per_s": median(speeds), "cpu_s_per_token": median(cpu), "reps": len(speeds),
            "gap_s": median(gaps), "gap_p95_s": float(np.percentile(gaps, 95))}  # fmt: skip


@contextlib.contextmanager
def busy_core(cpu: int) -> Iterator[None]:
    """While a process of another session never leaves `cpu`."""
    with subprocess.Popen([sys.executable, "-S", "-c", SPIN], start_new_session=True) as process:
        try:
            os.sched_setaffinity(process.pid, [cpu])
            time.sleep(0.2)  # until it runs
            yield
        finally:
            process.kill()


def prompt(tokens: int, salt: int) -> list[int]:
    """Made-up tokens, other ones for each salt, so that no cache of prompts helps."""
    return [(i * 7919 + salt * 104_729) % 29_000 + 500 for i in range(tokens)]


def perplexity(peer: Peer, windows: list[list[int]]) -> dict[str, Any]:
    """exp of the mean of -ln p over the second halves, each from its whole window so far."""
    losses = []
    for window in windows:
        begin = len(window) // 2
        rows = np.asarray(peer.logits(window), np.float32)[begin : len(window) - 1]
        losses.append(negative_log_likelihood(rows, window[begin + 1 :]))
    scored = sum(map(len, losses))
    mean = sum(float(loss.sum()) for loss in losses) / scored
    return {"perplexity": float(np.exp(mean)), "scored_tokens": scored,
            "window_losses": [float(loss.mean()) for loss in losses]}  # fmt: skip


def negative_log_likelihood(rows: Any, targets: Sequence[int]) -> Any:
    """-ln softmax(rows[i])[targets[i]] as float64."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    wanted = shifted[np.arange(len(targets)), targets].astype(np.float64)
    return np.log(np.exp(shifted).sum(axis=1, dtype=np.float64)) - wanted
