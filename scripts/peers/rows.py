"""What is asked beside speeds: starting, memory, drafts, shipped prompts and builds.

Each function measures one row and returns its figures by contestant. Peers are started in their
Python packages: from when a model begins to be opened, imports not counted, while ondevice-run is
timed from exec.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from peers import pages
from peers.child import private_dirty_bytes, prompt
from peers.contestants import BUILT, MODELS, SHIPPED, SYSTEM, Contestant, Model
from peers.prepare import HERE, Killed, Missing
from peers.run import Run, streamed_bytes
from peers.usage import run_watched

FAULTS = Missing, OSError, ValueError, LookupError
START_TOKENS, MEMORY_TOKENS, HALF_TOKENS = 8, 512, 8
WARM_STARTS, HALF_TIMEOUT_S = 5, 45
LARGE, SMALL, REAL = (
    next(m for m in MODELS if m.name == name) for name in ("1.1b", "15m", "smollm2")
)
BENCH_DRAFTS = HERE.parent / "bench_drafts.py"


def each(
    run: Run, model: Model, measure: Callable[[Contestant], dict[str, Any]], peers: bool = True
) -> dict[str, Any]:
    """`measure` of the first contestant of ours, and of the peers that have the model."""
    found: dict[str, Any] = {}
    ours = [c for c in run.contestants if not c.environment][:1]
    others = [c for c in run.contestants if c.environment and c.measures(model)]
    for contestant in [*ours, *(others if peers else ())]:
        try:
            found[contestant.name] = measure(contestant)
        except FAULTS as fault:  # the other rows and contestants are worth having
            run.leave_out(contestant.name, model.name, fault)
    return found


# ---- from nothing to the first token ----


def start(run: Run) -> dict[str, Any]:
    """Time to the first token with a warm and with an empty page cache, and private memory.

    `private_dirty_bytes` is what a prompt of 512 tokens leaves behind, `kv_bytes` what of it is
    the KV of its tokens. Files are read before and after the cold start: the faster reading is
    what counts, for a disk may have a cache of its own.
    """

    def measure(contestant: Contestant) -> dict[str, Any]:
        artifact = run.cache.artifact(contestant, LARGE)
        files = pages.files_of(artifact)
        largest = max(files, key=size_of)
        begin = peer_start if contestant.environment else our_start
        found = begin(run, contestant, warm=True)
        speeds = [pages.read_bytes_per_s(largest)]
        pages.forget(files)
        found["cold_s"] = begin(run, contestant, warm=False)["first_token_s"]
        found["touched_bytes"] = pages.cached_bytes(files)
        speeds.append(pages.read_bytes_per_s(largest))
        return {**found, "read_bytes_per_s": max(speeds)}

    return each(run, LARGE, measure)


def peer_start(run: Run, contestant: Contestant, warm: bool) -> dict[str, Any]:
    """Of a peer in its Python package; warm, the second start counts."""
    job = {
        "threads": len(run.cpus),
        "cpus": run.cpus,
        "start": {"prompt": START_TOKENS, "memory": MEMORY_TOKENS},
    }
    for _ in range(2 if warm else 1):
        found = run.child(contestant, LARGE, job)
    return found


def our_start(run: Run, contestant: Contestant, warm: bool) -> dict[str, Any]:
    """Of ondevice-run; warm, the median of a few."""
    bundle = run.cache.artifact(contestant, LARGE)
    if not warm:
        return {"first_token_s": runner(run, bundle, START_TOKENS)[0]}
    runner(run, bundle, START_TOKENS)
    times = [runner(run, bundle, START_TOKENS)[0] for _ in range(WARM_STARTS)]
    return {
        "first_token_s": median(times),
        "private_dirty_bytes": runner(run, bundle, MEMORY_TOKENS)[1],
        "kv_bytes": kv_bytes(bundle, MEMORY_TOKENS),
    }


def size_of(path: Path) -> int:
    return path.stat().st_size


def kv_bytes(bundle: Path, tokens: int) -> int:
    """Memory of the keys and values of so many tokens, in whole blocks."""
    block: int = json.loads((bundle / "manifest.json").read_text())["program"]["kv_block_bytes"]
    return -(-tokens // 32) * block


def runner(run: Run, bundle: Path, count: int) -> tuple[float, int]:
    """Seconds from the exec of ondevice-run to its first token, and its private memory then."""
    tokens = ",".join(map(str, prompt(count, 0)))
    words = [bundle / "bin/ondevice-run", bundle, "--tokens", tokens, "--max-tokens", "32"]
    words += ["--threads", str(len(run.cpus))]
    begin = time.perf_counter()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=pinned(run)
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        memory = private_dirty_bytes(process.pid)
        process.kill()
    if not first:
        raise Missing(f"ondevice-run {bundle} generates nothing")
    return seconds, memory


def pinned(run: Run) -> Callable[[], None] | None:
    """Puts a new process on the run's cores."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, run.cpus)


# ---- less memory than weights ----


def half(run: Run) -> dict[str, Any]:
    """Generation in a control group with half of the artifact's size as its memory.

    The interpreter is not counted, the page cache is. `missing_bytes` has to be read again for
    each token. Who needs more memory of its own is killed.
    """

    def measure(contestant: Contestant) -> dict[str, Any]:
        artifact = run.cache.artifact(contestant, LARGE)
        files = pages.files_of(artifact)
        largest = max(files, key=size_of)
        limit = size_of(largest) // 2
        speeds = [pages.read_bytes_per_s(largest)]
        pages.forget(files)
        test = {"name": "half", "prompt": HALF_TOKENS, "generate": HALF_TOKENS + 1, "reps": 1}
        job = {"threads": len(run.cpus), "cpus": run.cpus, "tests": [test]}
        missing = max(0, streamed_bytes(artifact) - limit)
        found: dict[str, Any] = {"missing_bytes": missing, "limit_bytes": limit}
        try:
            with pages.memory_limit(limit) as group:
                said = run.child(contestant, LARGE, {**job, "cgroup": str(group)}, HALF_TIMEOUT_S)
                found |= said["tests"]["half"]
        except Killed:
            found["killed"] = True
        speeds.append(pages.read_bytes_per_s(largest))
        return {**found, "read_bytes_per_s": max(speeds)}

    return each(run, LARGE, measure)


# ---- what only ondevice has ----


def drafts(run: Run) -> dict[str, Any]:
    """Guesses from the conversation against plain generation, by prompt; see bench_drafts.py."""
    options = ["--rounds", "3", "--threads", len(run.cpus), "--json"]

    def measure(contestant: Contestant) -> dict[str, Any]:
        bundle = run.cache.artifact(contestant, REAL)
        words = [sys.executable, BENCH_DRAFTS, bundle, *options]
        return run.program(words, preexec_fn=pinned(run))

    return each(run, REAL, measure, peers=False)


def shipped(run: Run) -> dict[str, Any]:
    """First token of chats with a long system prompt that the bundle ships."""
    try:
        bundle = run.cache.artifact(SHIPPED, REAL)
        cpus = ",".join(map(str, run.cpus))
        words = [sys.executable, HERE / "run_shipped.py", bundle, len(run.cpus), cpus, SYSTEM]
        return {"ondevice": run.program(words)}
    except FAULTS as fault:
        run.leave_out(SHIPPED.name, REAL.name, fault)
        return {}


# ---- builds ----


def build(run: Run) -> dict[str, Any]:
    """Whole conversions of the largest model, their time and memory; what is made is removed.

    Of compiled objects there are those of a build of another model: the runtime's.
    """
    return each(run, LARGE, lambda contestant: build_one(run, contestant))


def build_one(run: Run, contestant: Contestant) -> dict[str, Any]:
    """Peers whose conversion takes minutes are quoted from the one that made their artifact."""
    run.cache.artifact(contestant, LARGE)
    if contestant.program not in BUILT:
        return {**run.cache.conversion(contestant, LARGE), "kept": True}
    place = run.cache.root / "scratch" / f"build-{contestant.name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        if contestant.environment:
            python = run.cache.python(contestant.environment)
            source = run.cache.checkpoint(LARGE)
            words = [python, HERE / "to_gguf.py", source, place / "model.gguf"]
            return watched(run, [*words, *contestant.settings], {})
        words = [sys.executable, HERE / "run_build.py", LARGE.recipe, run.cache.checkpoint(LARGE)]
        settings = [*contestant.settings, "context_tokens=4096"]
        objects = {"ONDEVICE_CACHE_DIR": str(place / "objects")}
        other = [*words[:-1], run.cache.checkpoint(SMALL), place / "small", *settings]
        watched(run, other, objects)
        return watched(run, [*words, place / "bundle", *settings], objects)
    finally:
        shutil.rmtree(place)


def watched(run: Run, words: Sequence[Any], variables: dict[str, str]) -> dict[str, Any]:
    """Usage of a program, and what its last line says where that is JSON. Raises Missing."""
    log = run.cache.root / "logs" / "build.log"
    with log.open("w+") as file:
        status, usage = run_watched(
            words,
            stdout=file,
            stderr=file,
            cwd=run.cache.root / "logs",
            env={**os.environ, **variables},
            preexec_fn=pinned(run),
        )
    if status:
        raise Missing(f"{Path(words[1]).name} ended with {status}, see {log}")
    last = (log.read_text().splitlines() or [""])[-1]
    said = json.loads(last) if last.startswith("{") else {}
    return {**dataclasses.asdict(usage), **said}


ROWS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "start": start,
    "half": half,
    "drafts": drafts,
    "shipped": shipped,
    "build": build,
}
