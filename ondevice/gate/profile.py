"""Where the time of a bundle's steps goes: time, bytes and fraction of the ceilings per launch.

A prompt is read, then tokens are generated; each phase is profiled by itself, after a run that is
not. Bytes are those that must come from memory: weights, and keys and values. Activations, which
stay in caches, are not counted. Nothing is drafted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice import debug
from ondevice.bundle.program import (
    KV_BLOCK_TOKENS,
    Launch,
    Program,
    Space,
    WeightEntry,
)
from ondevice.bundle.read import open_bundle
from ondevice.errors import OndeviceError
from ondevice.gate.bench import generate_s, prompt_s
from ondevice.gate.ceilings import compile_ceilings, measure_ceilings
from ondevice.gate.predicted import Predicted, last_cache_bytes, measured_speed, read_predicted
from ondevice.passes.traffic import Step
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.engine import Engine

Events = NDArray[np.void]
SAMPLING = "choose tokens"


@dataclass(frozen=True)
class LaunchRow:
    """One launch over all steps of a phase; times are means over the workers.

    `operations` are the multiplications and additions of a matmul, 0 for everything else.
    """

    launch: int
    source: str
    kernel: str
    symbol: str
    runs: int
    busy_ns: float
    wait_ns: float
    weight_bytes: int
    kv_bytes: int
    operations: int
    predicted_ns: float = 0  # of `busy_ns`, by the build; 0 where it did not

    @property
    def op(self) -> str:
        """The source, the same for all layers."""
        return re.sub(r"^layers\.\d+\.", "layers.*.", self.source)

    @property
    def integer(self) -> bool:
        """Whether its operations are on 8-bit integers."""
        return self.kernel.startswith(("matmul_int", "matmul_plane"))


@dataclass(frozen=True)
class Phase:
    """The steps of a prompt, or those that generate."""

    name: str
    tokens: int
    wall_ns: float
    steps: tuple[Step, ...]
    rows: tuple[LaunchRow, ...]
    barriers_per_step: int
    barriers_per_layer: float
    trace: Events  # of the last step

    @property
    def outside_ns(self) -> float:
        """In no launch: between steps, and on the way to them."""
        return self.wall_ns - sum(row.busy_ns + row.wait_ns for row in self.rows)

    def figures(self) -> dict[str, Any]:
        """The phase for JSON."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "steps": len(self.steps),
            "wall_ns": self.wall_ns,
            "outside_ns": self.outside_ns,
            "barriers_per_step": self.barriers_per_step,
            "barriers_per_layer": self.barriers_per_layer,
            "weight_bytes_per_token": sum(r.weight_bytes for r in self.rows) / self.tokens,
            "kv_bytes_per_token": sum(r.kv_bytes for r in self.rows) / self.tokens,
            "launches": [{**asdict(row), "op": row.op} for row in self.rows],
        }


@dataclass(frozen=True)
class Report:
    """A profiled bundle; `ceilings` are those of `gate.ceilings` on as many threads."""

    name: str
    variant: str
    threads: int
    ceilings: dict[str, Any]
    phases: tuple[Phase, ...]

    @property
    def peak_gop_per_s(self) -> float:
        """8-bit operations by the instructions that the CPU variant has."""
        key = "matrix_gop_per_s" if "amx" in self.variant else "int8_gop_per_s"
        return float(self.ceilings[key] or self.ceilings["int8_gop_per_s"])

    def figures(self) -> dict[str, Any]:
        """Everything for JSON."""
        return {
            "name": self.name,
            "variant": self.variant,
            "threads": self.threads,
            "ceilings": self.ceilings,
            "peak_gop_per_s": self.peak_gop_per_s,
            "phases": [phase.figures() for phase in self.phases],
        }


def profile(
    bundle: str | os.PathLike[str],
    prompt: int = 512,
    generate: int = 128,
    depth: int = 0,
    threads: int | None = None,
    report: Path | None = None,
) -> Report:
    """Profile a prompt of `prompt` tokens and `generate` tokens, each behind `depth` others.

    0 leaves a phase out. `report` is what `build --report` wrote: times that it predicted are
    given for this machine. Raises OndeviceError where that does not fit the context.
    """
    opened = open_bundle(bundle)
    program = opened.read_program()
    context = depth + max(prompt, generate) + 1
    if context > program.context_tokens:
        raise OndeviceError(
            f"this needs a context of {context} tokens, the bundle has {program.context_tokens}"
        )
    blocks = -(-context // KV_BLOCK_TOKENS)
    with Engine(
        bundle, threads=threads, conversations=1, kv_blocks=blocks, draft_tokens=-1
    ) as engine:
        count = engine.info.threads
        cpus = sorted(os.sched_getaffinity(0))
        variant = engine.info.variant
        predicted = None if report is None else read_predicted(report, variant)
        ceilings = measure_ceilings(compile_ceilings(debug.cache_dir()), cpus[:count])
        phases = []
        if prompt:
            phases.append(_prefill(engine, program, prompt, depth))
        if generate:
            phases.append(_decode(engine, program, generate, depth))
        if predicted is not None:
            phases = [_with_predicted(phase, predicted, ceilings) for phase in phases]
    return Report(opened.manifest.name, variant, count, ceilings, tuple(phases))


def _prefill(engine: Engine, program: Program, tokens: int, depth: int) -> Phase:
    most = program.prefill_chunk_tokens
    steps = [
        Step(min(most, tokens - at), int(at + most >= tokens), depth + at)
        for at in range(0, tokens, most)
    ]
    return _phase("prefill", engine, program, steps, depth, prompt_s)


def _decode(engine: Engine, program: Program, tokens: int, depth: int) -> Phase:
    steps = [Step(1, 1, depth + at) for at in range(tokens)]

    def generate(conversation: Conversation, prompt: list[int]) -> float:
        return generate_s(conversation, prompt[:1], tokens)

    return _phase("decode", engine, program, steps, depth, generate)


def _phase(
    name: str,
    engine: Engine,
    program: Program,
    steps: Sequence[Step],
    depth: int,
    run_s: Callable[[Conversation, list[int]], float],
) -> Phase:
    """Run it twice, counting the second time."""
    random = np.random.default_rng(0)
    total = sum(step.rows for step in steps)
    with engine.conversation() as conversation:
        if depth:
            prompt_s(conversation, random.integers(program.vocab_size, size=depth).tolist())
            conversation.rewind(depth)
        run_s(conversation, random.integers(program.vocab_size, size=total).tolist())
        conversation.rewind(depth)
        with engine.profile(events=len(program.launches) + 1) as counted:
            wall_s = run_s(conversation, random.integers(program.vocab_size, size=total).tolist())
            rows = counted.rows()
            events = counted.events()
    barriers, in_layer = program.barriers(steps[-1].sizes)
    return Phase(
        name=name,
        tokens=total,
        wall_ns=wall_s * 1e9,
        steps=tuple(steps),
        rows=tuple(_rows(program, steps, rows, engine.info.threads)),
        barriers_per_step=barriers,
        barriers_per_layer=in_layer,
        trace=last_step(events),
    )


def _with_predicted(phase: Phase, predicted: Predicted, ceilings: Mapping[str, Any]) -> Phase:
    """With what was predicted of each launch, on the average over the steps."""
    speed = measured_speed(predicted.speed, ceilings)
    size = last_cache_bytes(predicted.last_bytes)
    found: dict[tuple[str, str], list[float]] = {}
    for step in phase.steps:
        for key, us in predicted.launch_us(step.rows, step.depth, speed, size).items():
            found.setdefault(key, []).append(us)
    means = {key: sum(times) / len(times) for key, times in found.items()}
    rows = tuple(
        replace(row, predicted_ns=1e3 * row.runs * means.get((row.op, row.symbol), 0))
        for row in phase.rows
    )
    return replace(phase, rows=rows)


def _rows(
    program: Program, steps: Sequence[Step], counted: Events, threads: int
) -> Iterator[LaunchRow]:
    for number, group in groupby(counted, key=lambda row: int(row["launch"])):
        workers = list(group)
        runs = max(int(row["runs"]) for row in workers)
        busy = sum(int(row["busy_ns"]) for row in workers) / threads
        wait = sum(int(row["wait_ns"]) for row in workers) / threads
        if number == len(program.launches):
            yield LaunchRow(number, SAMPLING, SAMPLING, "", runs, busy, wait, 0, 0, 0)
            continue
        launch = program.launches[number]
        ran = [step for step in steps if launch.runs(step.sizes)]
        symbol = program.kernels[launch.kernel].symbol
        kernel = re.sub(r"^od_|_[0-9a-f]{8}$", "", symbol)
        work = _work(program, launch, kernel, ran)
        yield LaunchRow(number, launch.source, kernel, symbol, runs, busy, wait, *work)


def _work(
    program: Program, launch: Launch, kernel: str, steps: Sequence[Step]
) -> tuple[int, int, int]:
    """(bytes of weights, bytes of keys and values, operations) of a launch in all `steps`."""
    weights = _weights(program, launch)
    rows = sum(launch.rows.evaluate(step.sizes) for step in steps)
    if kernel.startswith("embed"):
        weight_bytes = sum(rows * entry.size_bytes // entry.shape[0] for entry in weights)
    else:
        weight_bytes = len(steps) * sum(entry.size_bytes for entry in weights)
    kv_bytes = operations = 0
    if any(argument.space == Space.KV for argument in launch.arguments):
        each = program.kv.block_bytes // program.kv.layers // KV_BLOCK_TOKENS
        writes = kernel.startswith("kv_write")
        kv_bytes = each * sum(step.rows + (0 if writes else step.depth) for step in steps)
    if kernel.startswith("matmul"):
        matrices = [entry.shape for entry in weights if len(entry.shape) == 2]
        operations = 2 * rows * sum(n * k for n, k in matrices)
    return weight_bytes, kv_bytes, operations


def _weights(program: Program, launch: Launch) -> list[WeightEntry]:
    """The tensors that a launch reads, each once."""
    offsets = {a.offset for a in launch.arguments if a.space == Space.WEIGHTS}
    return [e for e in program.weights if any(0 <= o - e.offset < e.size_bytes for o in offsets)]


def last_step(events: Events) -> Events:
    """Those of the last step: of each worker the last runs in which launches only go up."""
    kept: list[Events] = []
    for worker in np.unique(events["worker"]):
        own = events[events["worker"] == worker]
        falls = np.nonzero(np.diff(own["launch"]) <= 0)[0]
        kept.append(own[falls[-1] + 1 if len(falls) else 0 :])
    if not kept:
        return events
    began = kept[0]["arrived_ns"][0]  # the first worker takes part in every step
    joined: Events = np.concatenate(kept)
    recent: Events = joined[joined["arrived_ns"] >= began]
    return recent
