"""What the passes made of a model, in bytes: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ondevice.bundle.program import Launch, Program
from ondevice.graph.graph import Graph
from ondevice.passes.arena import arena_sizes
from ondevice.passes.context import Context
from ondevice.passes.fuse import PROMPT, TOKEN, Fusion, fuse_by_bytes
from ondevice.passes.times import Times, starred
from ondevice.passes.traffic import Step, Traffic, graph_traffic, value_bytes

DEPTHS = (64, 512, 2048)  # behind which a token is predicted, as far as the context goes


@dataclass(frozen=True)
class StepReport:
    """Bytes that launches of a step move, as traced and as fused.

    Of the latter, `cached_bytes` are read where they were just written, from a core's own cache.
    """

    name: str
    step: Step
    traced: Traffic
    fused: Traffic
    cached_bytes: int
    barriers: int
    barriers_per_layer: float

    def figures(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens": self.step.rows,
            "barriers": self.barriers,
            "barriers_per_layer": self.barriers_per_layer,
            "traced": _per_token(self.traced, self.step),
            "fused": _per_token(self.fused, self.step),
            "cached_bytes_per_token": self.cached_bytes / self.step.rows,
        }


@dataclass(frozen=True)
class ProgramReport:
    """`fusions` are all that were looked at, those of all layers as one."""

    steps: tuple[StepReport, ...]
    fusions: tuple[tuple[Fusion, int], ...]  # with how often it is there

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "steps": [step.figures() for step in self.steps],
            "fusions": [
                {**asdict(fusion), "count": count, "done": fusion.done}
                for fusion, count in self.fusions
            ],
        }

    def summary(self) -> str:
        """A table with a line for each step."""
        head = f"{'bytes moved per token':22} {'traced':>13} {'fused':>13} {'in caches':>11}"
        lines = [f"{head} {'barriers':>9} {'per layer':>9}"]
        for one in self.steps:
            rows = one.step.rows
            traced, fused = one.traced.total // rows, one.fused.total // rows
            lines.append(
                f"{one.name:22} {traced:13,} {fused:13,} {one.cached_bytes // rows:11,}"
                f" {one.barriers:9} {one.barriers_per_layer:9.1f}"
            )
        return "\n".join(lines)


def report_program(
    stages: Mapping[str, Graph], program: Program, context: Context
) -> ProgramReport:
    """`stages` are the model as traced and behind each pass, by name.

    The steps are a prompt of 512 tokens, or as many as one step takes, and a token behind one.
    """
    traced, *_, planned = stages.values()
    unfused, fused = stages["narrow"], stages["fuse"]
    fusions = fuse_by_bytes(unfused, context)[1] if fused != unfused else ()
    rows = min(PROMPT.rows, program.prefill_chunk_tokens)
    steps = []
    for name, step in ((f"a prompt of {rows}", Step(rows)), ("a token", TOKEN)):
        sizes = step.sizes
        total, in_layer = program.barriers(sizes)
        before, after = graph_traffic(traced, step), graph_traffic(fused, step)
        kept = cached_bytes(planned, program.running(sizes), sizes)
        steps.append(StepReport(name, step, before, after, kept, total, in_layer))
    return ProgramReport(tuple(steps), tuple(_of_all_layers(fusions)))


def predicted_times(times: Times, program: Program) -> dict[str, Any]:
    """Each kernel's tile and time, on each CPU variant as the target describes it, for JSON.

    The steps are those of a prompt of 512 tokens, and a token at several depths.
    """
    rows = min(PROMPT.rows, program.prefill_chunk_tokens)
    most = min(PROMPT.rows, program.context_tokens) // rows * rows
    steps = [Step(rows, 1, depth) for depth in range(0, most, rows)]
    steps += [Step(1, 1, depth) for depth in DEPTHS if depth < program.context_tokens]
    speed = times.cpu.speed
    sizes = {name: getattr(times.cpu, f"{name}_bytes") for name in ("l1", "l2", "last")}
    return {
        "assumed": {**asdict(speed), **{f"{name}_bytes": size for name, size in sizes.items()}},
        "variants": [
            {
                "name": variant.name,
                "steps": [times.step(variant, step).figures(speed) for step in steps],
            }
            for variant in times.cpu.variants
        ],
    }


def cached_bytes(graph: Graph, running: Sequence[Launch], sizes: Mapping[str, int]) -> int:
    """Bytes that are read where they were just written: in the same claim, or by each worker."""
    nodes = {node.output.name: node for node in graph.nodes}
    types, arena = graph.types(), set(arena_sizes(graph))
    total = 0
    chain: set[str] = set()  # results of the launches that this one is chained to
    own: set[str] = set()  # what each worker has for itself
    for launch in running:
        own = set() if launch.barrier else own
        chain = chain if launch.chained else set()
        read = arena & (chain | own) & set(nodes[launch.source].reads())
        total += sum(value_bytes(types[name], sizes) for name in read)
        (own if launch.each else chain).add(launch.source)
    return total


def _of_all_layers(fusions: Sequence[Fusion]) -> list[tuple[Fusion, int]]:
    """Fusions that only differ in the layer as one, with their number and savings together."""
    found: dict[tuple[str, str], tuple[Fusion, int]] = {}
    for one in fusions:
        source = starred(one.source)
        before, count = found.get((one.op, source), (None, 0))
        prompt, token = one.saved_by_prompt, one.saved_by_token
        if before is not None:
            prompt, token = prompt + before.saved_by_prompt, token + before.saved_by_token
        into = tuple(map(starred, one.into))
        found[one.op, source] = (Fusion(one.op, source, into, prompt, token), count + 1)
    return list(found.values())


def _per_token(moved: Traffic, step: Step) -> dict[str, float]:
    return {f"{key}_bytes_per_token": value / step.rows for key, value in asdict(moved).items()}
