"""How long launches will take, from kernels and the description of a CPU alone: nothing is run.

A core's time in a launch is a sum: what its pipes need for the instructions of its tasks, and what
each level of memory needs to hand over the bytes that cross it. That the two do not overlap is the
execution-cache-memory model (Stengel, Treibig, Hager and Wellein, ICS 2015); only what a kernel
fetches ahead comes while it computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

from ondevice.bundle.program import (
    KV_BLOCK_TOKENS,
    KV_SPAN_TOKENS,
    Launch,
    Program,
    Space,
    StepBuffer,
)
from ondevice.graph.graph import Attrs, Choice, Graph, Node
from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.runs import Launched, Value
from ondevice.lang.work import Piece, pieces, walk_pieces
from ondevice.passes.context import VariantKernels
from ondevice.passes.instructions import uses_of
from ondevice.passes.traffic import Step
from ondevice.targets.target import Cpu, CpuVariant, Speed

BLOCKS_PER_SPAN = KV_SPAN_TOKENS // KV_BLOCK_TOKENS


@dataclass(frozen=True)
class Demand:
    """What a launch asks of the machine, all its tasks together.

    `cycles` are those of one core whose data is all in its first cache. Each byte counts where it
    comes from: the second cache, the last one, or, `fresh`, that one or memory: weights and KV. Of
    the latter two, what the kernel fetches `ahead` comes while it computes. Workers claim it all
    in `claims` pieces; 0 where each computes it for itself.
    """

    cycles: float
    l2_bytes: int
    last_bytes: int
    last_ahead_bytes: int
    fresh_bytes: int
    fresh_ahead_bytes: int
    claims: int

    def parts_ns(self, speed: Speed, from_memory: bool) -> dict[str, float]:
        """Where the time of the busiest core goes."""
        active = min(speed.cores, self.claims or speed.cores)
        share = -(-self.claims // speed.cores) / self.claims if self.claims else 1.0
        last = speed.last_gb_per_s
        fresh = min(last, speed.memory_gb_per_s / active) if from_memory else last
        cycles, l2 = share * self.cycles, share * self.l2_bytes
        last_ns = share * (self.last_bytes - self.last_ahead_bytes) / last
        fresh_ns = share * (self.fresh_bytes - self.fresh_ahead_bytes) / fresh
        ahead_ns = share * (self.last_ahead_bytes / last + self.fresh_ahead_bytes / fresh)
        fresh_ns += max(0.0, ahead_ns - cycles / speed.ghz)
        return {
            "start": speed.launch_ns,
            "instructions": cycles / speed.ghz,
            "second cache": l2 / (speed.l2_bytes_per_cycle * speed.ghz),
            "last cache": last_ns + (0 if from_memory else fresh_ns),
            "memory": fresh_ns if from_memory else 0.0,
        }

    def us(self, speed: Speed, from_memory: bool) -> float:
        return sum(self.parts_ns(speed, from_memory).values()) / 1e3


@dataclass(frozen=True)
class LaunchTime:
    """The launches of one kind in a step; `op` is what they compute, the same for all layers."""

    op: str
    kernel: str
    symbol: str
    tile: Attrs
    count: int
    tasks: int
    demand: Demand  # of one of them

    def figures(self, speed: Speed, from_memory: bool) -> dict[str, Any]:
        parts = self.demand.parts_ns(speed, from_memory)
        return {
            "op": self.op,
            "kernel": self.kernel,
            "symbol": self.symbol,
            "tile": dict(self.tile),
            "count": self.count,
            "tasks": self.tasks,
            **asdict(self.demand),
            "us": self.demand.us(speed, from_memory),
            "bound": max(parts, key=lambda name: parts[name]),
        }


@dataclass(frozen=True)
class StepTime:
    """A step on one CPU variant. `from_memory`: its weights and KV do not fit the last cache."""

    step: Step
    barriers: int
    from_memory: bool
    launches: tuple[LaunchTime, ...]

    def us(self, speed: Speed) -> float:
        launches = sum(one.count * one.demand.us(speed, self.from_memory) for one in self.launches)
        return launches + self.barriers * speed.barrier_ns / 1e3

    def figures(self, speed: Speed) -> dict[str, Any]:
        return {
            "tokens": self.step.rows,
            "depth": self.step.depth,
            "us": self.us(speed),
            "barriers": self.barriers,
            "from_memory": self.from_memory,
            "launches": [one.figures(speed, self.from_memory) for one in self.launches],
        }


def starred(name: str) -> str:
    """The name of a value, the same for all layers."""
    return re.sub(r"\.\d+\.", ".*.", name)


class Times:
    """Those of one program. What kernels do is found once: variants and steps share them."""

    def __init__(
        self, graph: Graph, program: Program, kernels: Sequence[VariantKernels], cpu: Cpu
    ) -> None:
        self.program, self.kernels, self.cpu = program, kernels, cpu
        self.nodes = {node.output.name: node for node in graph.nodes}
        self._pieces: dict[int, Piece] = {}
        self._launched: dict[object, Launched] = {}

    def step(self, variant: CpuVariant, step: Step) -> StepTime:
        """A step on a CPU variant of the target."""
        sizes = {**step.sizes, "P": step.sizes["T"] * BLOCKS_PER_SPAN}
        found: dict[object, LaunchTime] = {}
        for launch in self.program.running(sizes):
            kind = starred(launch.source), launch.kernel, launch.tasks, launch.chunk, launch.each
            if kind in found:
                found[kind] = replace(found[kind], count=found[kind].count + 1)
            else:
                found[kind] = self._launch(launch, variant, step, sizes)
        fresh = sum(one.count * one.demand.fresh_bytes for one in found.values())
        from_memory = fresh > self.cpu.last_bytes
        return StepTime(step, self.program.barriers(sizes)[0], from_memory, tuple(found.values()))

    def _launch(
        self, launch: Launch, variant: CpuVariant, step: Step, sizes: Mapping[str, int]
    ) -> LaunchTime:
        kernel = self.kernels[launch.kernel][self.cpu.variants.index(variant)]
        row, tile = _choice(self.nodes[launch.source], launch, sizes).on(variant.name)
        tasks = launch.tasks.evaluate(sizes)
        claims = 0 if launch.each else -(-tasks // launch.chunk)
        places = zip(kernel.buffers, launch.arguments, strict=True)
        fresh = {b.name for b, place in places if place.space in (Space.WEIGHTS, Space.KV)}
        launched = self._run(launch, kernel, step, sizes)
        work = demand(launched, fresh, self.cpu, variant, claims)
        symbol = self.program.kernels[launch.kernel].symbol
        return LaunchTime(starred(launch.source), row, symbol, tile, 1, tasks, work)

    def _run(
        self, launch: Launch, kernel: Kernel, step: Step, sizes: Mapping[str, int]
    ) -> Launched:
        values = [extent.evaluate(sizes) for extent in launch.scalars]
        key = id(kernel), tuple(values), step
        if key not in self._launched:
            if id(kernel) not in self._pieces:
                self._pieces[id(kernel)] = pieces(kernel)
            scalars = dict(zip(kernel.scalars, values, strict=True))
            steering = dict(_steering(launch, kernel, step))
            self._launched[key] = Launched(kernel, self._pieces[id(kernel)], scalars, steering)
        return self._launched[key]


def _choice(node: Node, launch: Launch, sizes: Mapping[str, int]) -> Choice:
    """The one that this launch of the node is."""
    rows, spans = launch.rows.evaluate(sizes), sizes["T"]
    return next(
        choice
        for choice in node.choices
        if choice.min_rows <= rows <= choice.max_rows
        and choice.min_spans <= spans <= choice.max_spans
    )


def demand(
    launched: Launched, fresh: Set[str], cpu: Cpu, variant: CpuVariant, claims: int
) -> Demand:
    """Of a kernel that runs all its tasks; `fresh` are its buffers of weights and KV."""
    runs = launched.executions
    cycles = sum(
        runs[id(piece)] * piece_cycles(piece, variant, cpu.speed)
        for piece in walk_pieces(launched.piece)
        if id(piece) in runs
    )
    outer = launched.crossing(cpu.l2_bytes)
    inner = sum(launched.crossing(cpu.l1_bytes).values()) - sum(outer.values())
    ahead = {name: min(size, launched.prefetched.get(name, 0)) for name, size in outer.items()}
    last, last_ahead, new, new_ahead = (
        sum(size for name, size in sizes.items() if (name in fresh) == wanted)
        for wanted in (False, True)
        for sizes in (outer, ahead)
    )
    return Demand(cycles, max(0, inner), last, last_ahead, new, new_ahead, claims)


def piece_cycles(piece: Piece, variant: CpuVariant, speed: Speed) -> float:
    """Of one run of a piece, without those inside of it."""
    uses = uses_of(piece.operations, variant)
    return uses.matrix + max(
        uses.vector / variant.vector_pipes,
        uses.multiply / speed.multiply_pipes,
        uses.load / speed.load_pipes,
        uses.store / speed.store_pipes,
        (uses.vector + uses.load + uses.store + uses.scalar) / speed.issue,
        piece.chain,
    )


def _steering(
    launch: Launch, kernel: Kernel, step: Step
) -> Iterator[tuple[str, Callable[[tuple[Value, ...]], Value]]]:
    """What kernels find in the step's buffers, for one conversation whose blocks lie in order."""
    values: dict[int, Callable[[tuple[Value, ...]], Value]] = {
        StepBuffer.POSITIONS: lambda at: step.depth + at[0],
        StepBuffer.SEQUENCE: lambda at: 0,
        StepBuffer.BLOCK_TABLE: lambda at: at[-1],
        StepBuffer.LOGIT_ROWS: lambda at: step.rows - 1,
    }
    for buffer, argument in zip(kernel.buffers, launch.arguments, strict=True):
        if argument.space == Space.STEP and argument.index in values:
            yield buffer.name, values[argument.index]
