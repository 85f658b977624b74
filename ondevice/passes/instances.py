"""The kernels that a node's choices name, specialized: once for each CPU variant of the target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ondevice.bundle.program import ProgramKernel
from ondevice.dims import Extent
from ondevice.errors import GraphError
from ondevice.graph.graph import Choice, Graph, Node
from ondevice.lang.footprint import Footprint, footprint
from ondevice.lang.kernel_ir import Const, Expr, Kernel, Op, Var
from ondevice.lang.library import Instance, instantiate
from ondevice.lang.text import print_kernel
from ondevice.passes.context import Context, VariantKernels
from ondevice.passes.traffic import Step, Traffic, traffic


class Instances:
    """Those of one graph, each made once. `instances_of` shares them among passes."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self.nodes = graph.nodes
        self.types = graph.types()
        self.weights = {value.name for value in graph.weights}
        self.context = context
        self._known: dict[tuple[str, Choice], tuple[Instance, ...]] = {}
        self._extents: dict[tuple[str, Choice], tuple[Extent, ...]] = {}
        self._traffic: dict[tuple[str, Step], Traffic] = {}
        self._footprints: dict[int, Footprint] = {}
        self._texts: dict[int, str] = {}
        self._rows: dict[tuple[int, ...], ProgramKernel] = {}

    def of(self, choice: Choice, node: Node) -> tuple[Instance, ...]:
        """The choice for each CPU variant. GraphError where they could not share a launch."""
        key = node.output.name, choice
        if key not in self._known:
            self._known[key] = self._made(choice, node)
        return self._known[key]

    def extents(self, choice: Choice, node: Node) -> tuple[Extent, ...]:
        """Of the parallel loop of the choice."""
        key = node.output.name, choice
        if key not in self._extents:
            self._extents[key] = extents_of(self.of(choice, node)[0])
        return self._extents[key]

    def traffic(self, node: Node, step: Step) -> Traffic:
        """What a node moves in a step."""
        key = node.output.name, step
        if key not in self._traffic:
            self._traffic[key] = traffic(node, self.weights, self.types, step)
        return self._traffic[key]

    def footprint(self, kernel: Kernel) -> Footprint:
        """That of a kernel of one of these, told by its identity: to hash a kernel takes long."""
        if id(kernel) not in self._footprints:
            self._footprints[id(kernel)] = footprint(kernel)
        return self._footprints[id(kernel)]

    def text(self, kernel: Kernel) -> str:
        """A kernel of one of these as it is printed."""
        if id(kernel) not in self._texts:
            self._texts[id(kernel)] = print_kernel(kernel)
        return self._texts[id(kernel)]

    def row(self, kernels: VariantKernels) -> ProgramKernel:
        """What a program says of a kernel."""
        same = tuple(map(id, kernels))
        if same not in self._rows:
            texts = dict.fromkeys(map(self.text, kernels))
            digest = hashlib.sha256("".join(texts).encode()).hexdigest()
            symbol = f"od_{kernels[-1].name}_{digest[:8]}"
            scratch_bytes = max(kernel.scratch_bytes for kernel in kernels)
            self._rows[same] = ProgramKernel(symbol, scratch_bytes, digest)
        return self._rows[same]

    def chunk(self, choice: Choice) -> int:
        """Tasks that a worker claims at once."""
        return self.context.library.kernels[choice.kernel].chunk

    def _made(self, choice: Choice, node: Node) -> tuple[Instance, ...]:
        library = self.context.library
        own = [choice.on(variant.name) for variant in self.context.target.cpu.variants]
        made = {
            (name, schedule): instantiate(
                library, library.kernels[name], node, self.types, schedule
            )
            for name, schedule in dict.fromkeys(own)
        }
        instances = [made[row] for row in own]
        if len({(i.buffers, i.scalars, extents_of(i)) for i in made.values()}) != 1:
            raise GraphError(f"{choice.kernel}: CPU variants differ in their arguments or tasks")
        kernels = tuple(instance.kernel for instance in instances)
        if tuple(map(id, kernels)) not in self._rows:
            texts = list(map(self.text, kernels))
            self.context.begin(self.row(kernels).symbol, kernels, texts)
        return tuple(instances)


def instances_of(graph: Graph, context: Context) -> Instances:
    """Those of a graph, or of one that differs in where values lie only."""
    found = context.kept.get("instances")
    if not isinstance(found, Instances) or found.nodes is not graph.nodes:
        found = context.kept["instances"] = Instances(graph, context)
    return found


def extents_of(instance: Instance) -> tuple[Extent, ...]:
    """The extents of the parallel loop, in the step's symbols."""
    values = dict(zip(instance.kernel.scalars, instance.scalars, strict=True))
    return tuple(_extent(expression, values) for expression in instance.kernel.extents)


def tasks_of(instance: Instance) -> Extent:
    """The product of the parallel loop's extents; at most one of them may be symbolic."""
    total = Extent.of(1)
    for extent in extents_of(instance):
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
