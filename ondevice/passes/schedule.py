"""Graph -> Program: specialize the chosen kernels, and write one launch for each choice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
from ondevice.dims import Extent
from ondevice.errors import GraphError
from ondevice.graph.graph import Choice, Graph, Node
from ondevice.graph.ops import OPS
from ondevice.lang.kernel_ir import Const, Expr, Kernel, Op, Var
from ondevice.lang.library import Instance, Types, instantiate
from ondevice.lang.text import print_kernel
from ondevice.passes.context import Context
from ondevice.passes.plan_memory import slots

STEP_INPUTS = {buffer.name.lower(): buffer for buffer in StepBuffer}


# One kernel as each CPU variant of the target computes it, in the target's order.
VariantKernels = tuple[Kernel, ...]


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

    A launch waits for the earlier ones only where it reads or overwrites what they wrote since the
    last wait, or writes what they read. `barriers_everywhere` is the trivial form.
    """
    kernels = KernelTable()
    places = _places(graph, frame)
    types = graph.types()
    hazards = Hazards()
    launches: list[Launch] = []
    for node in graph.nodes:
        touched = _touched(node, places)
        barrier = hazards.barrier(*touched) or barriers_everywhere
        for choice in node.choices:
            instances = _instances(choice, node, types, context)
            chunk = context.library.kernels[choice.kernel].chunk
            launches.append(_launch(kernels, instances, choice, node, places, chunk, barrier))
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
    )
    return program, tuple(kernels.kernels)


@dataclass
class KernelTable:
    """Kernels by their printed text, so that all layers share one; each for every CPU variant."""

    kernels: list[VariantKernels] = field(default_factory=list)
    rows: list[ProgramKernel] = field(default_factory=list)
    _known: dict[VariantKernels, int] = field(default_factory=dict)

    def number(self, kernels: VariantKernels) -> int:
        if kernels not in self._known:
            texts = dict.fromkeys(map(print_kernel, kernels))
            digest = hashlib.sha256("".join(texts).encode()).hexdigest()
            self._known[kernels] = len(self.kernels)
            symbol = f"od_{kernels[-1].name}_{digest[:8]}"
            scratch_bytes = max(kernel.scratch_bytes for kernel in kernels)
            self.kernels.append(kernels)
            self.rows.append(ProgramKernel(symbol, scratch_bytes, digest))
        return self._known[kernels]


@dataclass
class Hazards:
    """What the launches since the last barrier read and wrote."""

    read: set[object] = field(default_factory=set)
    written: set[object] = field(default_factory=set)

    def barrier(self, reads: set[object], writes: set[object]) -> bool:
        """Whether a launch that touches these must wait; then it is noted."""
        wait = bool(reads & self.written or writes & (self.written | self.read))
        if wait:
            self.read.clear()
            self.written.clear()
        self.read |= reads
        self.written |= writes
        return wait


def _touched(node: Node, places: Mapping[str, Argument]) -> tuple[set[object], set[object]]:
    """(reads, writes) of a node as memory: an arena slot, a step buffer, a layer of the cache."""

    def memory(name: str) -> object:
        place = places[name]
        if place.space == Space.KV:
            return (place.space, node.attr("layer"))
        return (place.space, place.index)

    reads = {memory(n) for n in node.reads() if places[n].space != Space.WEIGHTS}
    return reads, {memory(node.output.name)}


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


def _instances(choice: Choice, node: Node, types: Types, context: Context) -> list[Instance]:
    """The choice for each CPU variant. GraphError where they could not share a launch."""
    instances = []
    for variant in context.target.cpu.variants:
        name, schedule = choice.on(variant.name)
        row = context.library.kernels[name]
        instances.append(instantiate(context.library, row, node, types, schedule))
    if len({(i.buffers, i.scalars, _tasks(i.kernel.extents, i)) for i in instances}) != 1:
        raise GraphError(f"{choice.kernel}: CPU variants differ in their arguments or tasks")
    return instances


def _launch(
    kernels: KernelTable,
    instances: Sequence[Instance],
    choice: Choice,
    node: Node,
    places: Mapping[str, Argument],
    chunk: int,
    barrier: bool,
) -> Launch:
    instance = instances[0]
    return Launch(
        kernel=kernels.number(tuple(i.kernel for i in instances)),
        arguments=tuple(places[name] for name in instance.buffers),
        scalars=instance.scalars,
        tasks=_tasks(instance.kernel.extents, instance),
        chunk=chunk,
        rows=instance.rows,
        min_rows=choice.min_rows,
        max_rows=choice.max_rows,
        barrier=barrier,
        source=node.output.name,
        min_spans=choice.min_spans,
        max_spans=choice.max_spans,
    )


def _tasks(extents: Sequence[Expr], instance: Instance) -> Extent:
    """The product of the parallel loop's extents; at most one of them may be symbolic."""
    values = dict(zip(instance.kernel.scalars, instance.scalars, strict=True))
    total = Extent.of(1)
    for expression in extents:
        extent = _extent(expression, values)
        if extent.static is not None:
            total = total * extent.static
        elif total.static is not None:
            total = extent * total.static
        else:
            raise GraphError(f"{instance.kernel.name}: two run-time extents in one parallel loop")
    return total


def _extent(expression: Expr, values: Mapping[str, Extent]) -> Extent:
    """An index expression of a kernel as an Extent of the step's symbols."""
    if isinstance(expression, Const):
        return Extent.of(int(expression.value))
    if isinstance(expression, Var):
        return values[expression.name]
    if isinstance(expression, Op):
        a, b = (_extent(argument, values) for argument in expression.args)
        if expression.name == "floordiv" and b.static is not None:
            return (a + (1 - b.static)).ceildiv(b.static)  # floor(a / b) is ceil((a - b + 1) / b)
        if expression.name == "mul" and b.static is not None:
            return a * b.static
        if expression.name == "mul" and a.static is not None:
            return b * a.static
        if expression.name == "add":
            return a + b
    raise GraphError(f"a parallel loop's extent must be a linear form, not {expression}")
