"""Graph -> Program: specialize the chosen kernels, and write one launch for each choice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from ondevice.bundle.program import (
    Argument,
    KvCache,
    Launch,
    Program,
    ProgramKernel,
    Rope,
    Space,
    StepBuffer,
    WeightEntry,
)
from ondevice.errors import GraphError
from ondevice.graph.graph import Graph, Node
from ondevice.graph.ops import OPS
from ondevice.passes.alignment import Memory
from ondevice.passes.arena import arena_sizes
from ondevice.passes.context import Context, VariantKernels
from ondevice.passes.instances import Instances, instances_of, tasks_of
from ondevice.passes.phases import plan_phases
from ondevice.passes.plan_memory import slots
from ondevice.passes.roles import Placed, Role, assign_roles
from ondevice.passes.tasks import Regime

STEP_INPUTS = {buffer.name.lower(): buffer for buffer in StepBuffer}


@dataclass(frozen=True)
class Frame:
    """What a Program says of the model besides its launches."""

    name: str
    vocab_size: int
    context_tokens: int
    prefill_chunk_tokens: int
    logit_rows: int
    kv: KvCache
    ropes: tuple[Rope, ...]
    weights: tuple[WeightEntry, ...]
    weights_bytes: int


def schedule(
    graph: Graph, context: Context, frame: Frame, *, barriers_everywhere: bool = False
) -> tuple[Program, tuple[VariantKernels, ...]]:
    """The launch table in graph order, and the kernels it names, each once.

    How launches follow each other is what `plan_phases` finds; `barriers_everywhere` is the trivial
    form.
    """
    places = _places(graph, frame)
    instances = instances_of(graph, context)
    kernels = KernelTable(instances)
    if barriers_everywhere:
        roles, worker_bytes = _all_wait(graph), 0
    else:
        runs = plan_phases(graph, instances, _memory(places))
        roles, worker_bytes = assign_roles(runs, arena_sizes(graph))
    launches = [
        _launch(kernels, instances, placed, node, places)
        for node in graph.nodes
        for placed in roles[node.output.name]
    ]
    program = Program(
        name=frame.name,
        vocab_size=frame.vocab_size,
        context_tokens=frame.context_tokens,
        prefill_chunk_tokens=frame.prefill_chunk_tokens,
        logit_rows=frame.logit_rows,
        kv=frame.kv,
        ropes=frame.ropes,
        slots=slots(graph),
        kernels=tuple(kernels.rows),
        launches=tuple(launches),
        weights=frame.weights,
        weights_bytes=frame.weights_bytes,
        worker_bytes=worker_bytes,
    )
    return program, tuple(kernels.kernels)


def _all_wait(graph: Graph) -> dict[str, list[Placed]]:
    role = Role(barrier=True)
    return {
        node.output.name: [
            Placed(
                choice,
                Regime(
                    "", (choice.min_rows, choice.max_rows), (choice.min_spans, choice.max_spans)
                ),
                role,
            )
            for choice in node.choices
        ]
        for node in graph.nodes
    }


@dataclass
class KernelTable:
    """Kernels by their printed text, so that all layers share one; each for every CPU variant."""

    instances: Instances
    kernels: list[VariantKernels] = field(default_factory=list)
    rows: list[ProgramKernel] = field(default_factory=list)
    _known: dict[tuple[str, ...], int] = field(default_factory=dict)
    _same: dict[tuple[int, ...], int] = field(default_factory=dict)  # texts are long

    def number(self, kernels: VariantKernels) -> int:
        same = tuple(map(id, kernels))
        if same not in self._same:
            texts = tuple(map(self.instances.text, kernels))
            if texts not in self._known:
                self._known[texts] = len(self.kernels)
                self.kernels.append(kernels)
                self.rows.append(self.instances.row(kernels))
            self._same[same] = self._known[texts]
        return self._same[same]


def _memory(places: Mapping[str, Argument]) -> Memory:
    """A value's slot of the arena or step buffer, or its layer of the cache."""

    def memory(name: str, node: Node) -> Hashable:
        place = places[name]
        if place.space == Space.WEIGHTS:
            return None
        return (place.space, node.attr("layer") if place.space == Space.KV else place.index)

    return memory


def _places(graph: Graph, frame: Frame) -> dict[str, Argument]:
    """Where every value of the graph lies."""
    offsets = {entry.name: entry.offset for entry in frame.weights}
    places = {w.name: Argument(Space.WEIGHTS, 0, offsets[w.name]) for w in graph.weights}
    for value in graph.inputs:
        if value.name == "kv":
            places[value.name] = Argument(Space.KV)
        else:
            places[value.name] = Argument(Space.STEP, STEP_INPUTS[value.name])
    places |= {name: Argument(Space.ARENA, slot) for name, slot in graph.storage}
    for node in graph.nodes:
        if OPS[node.op].state:
            places[node.output.name] = Argument(Space.KV)
    places[graph.outputs[0]] = Argument(Space.STEP, StepBuffer.LOGITS)
    missing = [v.name for v in graph.values() if v.name not in places]
    if missing:
        raise GraphError(f"no storage was planned for {missing[0]!r}")
    return places


def _launch(
    kernels: KernelTable,
    instances: Instances,
    placed: Placed,
    node: Node,
    places: Mapping[str, Argument],
) -> Launch:
    choice, regime, role = placed.choice, placed.regime, placed.role
    variants = instances.of(choice, node)
    instance = variants[0]
    own = {name: Argument(Space.WORKER, 0, offset) for name, offset in role.own}
    return Launch(
        kernel=kernels.number(tuple(variant.kernel for variant in variants)),
        arguments=tuple(own.get(name) or places[name] for name in instance.buffers),
        scalars=instance.scalars,
        tasks=tasks_of(instance),
        chunk=role.chunk or instances.chunk(choice),
        rows=instance.rows,
        min_rows=regime.rows[0],
        max_rows=regime.rows[1],
        barrier=role.barrier,
        source=node.output.name,
        min_spans=regime.spans[0],
        max_spans=regime.spans[1],
        chained=role.chained,
        each=role.each,
    )
