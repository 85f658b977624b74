"""The tests of one peer in a process of its own; `run_PEER.py` brings the peer.

    python run_PEER.py JOB

JOB is a JSON object: `path` of the model, `threads`, `cpus` to stay on, `context`, `options` of the
peer, and `tests`, or `windows`, a file of token windows whose perplexity is asked. The last line
printed is a JSON object. Nothing but Python and NumPy is imported: every environment has them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np

WARM_TOKENS = 16
ENOUGH_S = 2.5  # a test is repeated until it took so long, or `reps` times


@dataclass(frozen=True)
class Moment:
    """Wall time and CPU time of all threads of the process, in seconds."""

    wall_s: float
    cpu_s: float


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


class Peer(Protocol):
    """A loaded model."""

    def generate(self, prompt: Sequence[int], count: int) -> tuple[Moment, Moment]:
        """Begin a new text and generate `count` tokens: when the first was there, and the last."""
        ...

    def logits(self, window: Sequence[int]) -> Any:
        """Logits [len(window), vocab] of a text, as float32."""
        ...


def main(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Do what the command line asks."""
    job = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])
    started = now()
    peer = load(job)
    result: dict[str, Any] = {"load_s": now().wall_s - started.wall_s}
    if "windows" in job:
        with open(job["windows"]) as file:
            result |= perplexity(peer, json.load(file))
    else:
        result["tests"] = {test["name"]: measure(peer, test) for test in job.get("tests", ())}
    result["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(result), flush=True)
    os._exit(0)  # some peers crash in their destructors, with everything done


def measure(peer: Peer, test: dict[str, Any]) -> dict[str, float]:
    """Medians of `reps` repetitions of {"prompt": tokens, "generate": tokens, "reps": n}.

    Where nothing is generated but the token behind the prompt, the prompt is what is timed,
    otherwise the tokens behind the first.
    """
    decodes = test["generate"] > 1
    if test["reps"] > 1 or not decodes:
        warm = min(test["generate"], WARM_TOKENS)
        peer.generate(prompt(test["prompt"], 0), warm)  # some compile at the first prompt
    speeds, cpu, elapsed = [], [], 0.0
    for i in range(test["reps"]):
        begin = now()
        first, last = peer.generate(prompt(test["prompt"], i + 1), test["generate"])
        tokens = test["generate"] - 1 if decodes else test["prompt"]
        since, until = (first, last) if decodes else (begin, first)
        speeds.append(tokens / (until.wall_s - since.wall_s))
        cpu.append((until.cpu_s - since.cpu_s) / tokens)
        elapsed += last.wall_s - begin.wall_s
        if elapsed > ENOUGH_S:
            break
    return {"tokens_per_s": median(speeds), "cpu_s_per_token": median(cpu), "reps": len(speeds)}


def prompt(tokens: int, salt: int) -> list[int]:
    """Made-up tokens, other ones for each salt, so that no cache of prompts helps."""
    return [(i * 7919 + salt * 104_729) % 29_000 + 500 for i in range(tokens)]


def perplexity(peer: Peer, windows: list[list[int]]) -> dict[str, float]:
    """exp of the mean of -ln p over the second halves, each from its whole window so far."""
    total, scored = 0.0, 0
    for window in windows:
        begin = len(window) // 2
        rows = np.asarray(peer.logits(window), np.float32)[begin : len(window) - 1]
        losses = negative_log_likelihood(rows, window[begin + 1 :])
        total, scored = total + float(losses.sum()), scored + len(losses)
    return {"perplexity": float(np.exp(total / scored)), "scored_tokens": scored}


def negative_log_likelihood(rows: Any, targets: Sequence[int]) -> Any:
    """-ln softmax(rows[i])[targets[i]] as float64."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    wanted = shifted[np.arange(len(targets)), targets].astype(np.float64)
    return np.log(np.exp(shifted).sum(axis=1, dtype=np.float64)) - wanted
