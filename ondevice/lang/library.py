"""KernelDef: which op a kernel computes, and how a node's tensors become its buffers.

`kernels.LIBRARY` is the table of these rows. Passes choose among them; `instantiate` turns a row,
a node and a tile into a `Kernel` and the arguments of its launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from ondevice.bundle.program import ALL_SPANS
from ondevice.dims import Extent
from ondevice.errors import GraphError
from ondevice.graph.graph import Applied, Attrs, Node, TensorType
from ondevice.graph.ops import OPS
from ondevice.lang.dsl import Chain, InlineFunction, KernelFunction, hole_buffers
from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.parse import Parameter
from ondevice.lang.specialize import Constant, specialize

ALL_ROWS = 2**31 - 1
Types = Mapping[str, TensorType]


@dataclass(frozen=True)
class View:
    """A value as a kernel's buffer: the shape that the kernel sees."""

    value: str
    shape: tuple[Extent, ...]


@dataclass(frozen=True)
class Binding:
    """How a node fills a kernel's parameters; constants of the tile are added later."""

    views: tuple[View, ...]  # one for each buffer parameter, in order
    constants: Mapping[str, Constant] = field(default_factory=dict)
    scalars: Mapping[str, int | str] = field(default_factory=dict)  # index parameters, or symbols


@dataclass(frozen=True)
class KernelDef:
    """One row of the library.

    `bind` returns None where the kernel cannot compute the node (another scheme, say). `tile` is
    the default schedule, which the tile pass shrinks to the CPU's registers and cores. The row
    is offered for `min_rows`..`max_rows` rows of the node's result. A row stands in for the row
    `instead_of` on the CPU variants that have the features it `needs` and none that it `lacks`: it
    takes the same buffers and the same tasks.
    """

    name: str
    op: str
    function: KernelFunction
    bind: Callable[[Node, Types], Binding | None]
    tile: Attrs = ()
    min_rows: int = 0
    max_rows: int = ALL_ROWS
    min_spans: int = 0  # likewise of T, the spans of cached positions that the step sees
    max_spans: int = ALL_SPANS
    holes: tuple[str, ...] = ()  # in the kernel's order; see `hole_steps`
    chunk: int = 1  # tasks a worker claims at once
    live: tuple[int, int] = (1, 1)  # vectors of 16 lanes: of each result, of each block of weights
    # The tile where the kernel knows it itself: for a node, a number of registers of 16 lanes, the
    # number that all CPU variants agree on, and the variant's features.
    fit: Callable[[Node, Types, int, int, frozenset[str]], Attrs] | None = None
    shared: tuple[str, ...] = ()  # static dims that are passed at run time: one code for many sizes
    needs: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    instead_of: str = ""

    def held(self, tokens: int, blocks: int) -> int:
        """Vectors that a tile wants in registers at once."""
        results, weights = self.live
        return blocks * (tokens * results + weights)


@dataclass(frozen=True)
class Library:
    """Kernels by name, and the steps that fill holes by the name of their elementwise op."""

    kernels: Mapping[str, KernelDef]
    steps: Mapping[str, InlineFunction]

    def candidates(self, node: Node, types: Types) -> list[KernelDef]:
        """The rows that can compute `node`, the most general first. GraphError if there is none."""
        rows = [
            row
            for row in self.kernels.values()
            if row.op == node.op
            and not row.instead_of
            and row.bind(node, types) is not None
            and self._holes_fit(row, node)
        ]
        if not rows:
            operands = ", ".join(str(types[name]) for name in node.inputs)
            raise GraphError(f"{node.source}: no kernel computes {node.op}({operands})")
        return rows

    @staticmethod
    def _holes_fit(row: KernelDef, node: Node) -> bool:
        takes_epilogue = "epilogue" in row.holes or "apply" in row.holes
        before = {prologue_hole(applied.op) for applied in node.prologue}
        return before <= set(row.holes) and (not node.epilogue or takes_epilogue)


@dataclass(frozen=True)
class Instance:
    """A specialized kernel and what a launch must hand it, in the order of the kernel's ABI."""

    kernel: Kernel
    buffers: tuple[str, ...]  # values of the graph
    scalars: tuple[Extent, ...]
    rows: Extent  # of the result, or of what a state op stores


def instantiate(
    library: Library, row: KernelDef, node: Node, types: Types, schedule: Attrs
) -> Instance:
    """Specialize `row` for `node` with this tile."""
    binding = row.bind(node, types)
    assert binding is not None, f"{row.name} was chosen for a node it cannot compute"
    constants: dict[str, Constant] = dict(binding.constants)
    constants.update({k: v for k, v in schedule if not isinstance(v, str)})
    buffers = [view.value for view in binding.views]
    dims: dict[str, Extent] = {}
    for parameter, view in zip(row.function.source.buffers, binding.views, strict=True):
        _bind_dims(row.name, parameter, view.shape, dims)
    for hole in row.holes:
        applied = hole_steps(hole, node)
        chain = Chain(tuple(_step(library, row, a) for a in applied))
        constants[hole] = chain
        extra = [name for a in applied for name in a.inputs if name != "_"]
        for (_, _, parameter), name in zip(hole_buffers(hole, chain), extra, strict=True):
            _bind_dims(row.name, parameter, types[name].shape, dims)
            buffers.append(name)
    kernel = _specialized(
        row.function, tuple(_static_or_alias(dims, row.shared).items()), tuple(constants.items())
    )
    values = {**dims, **{name: Extent.of(v) for name, v in binding.scalars.items()}}
    scalars = tuple(values[name] for name in kernel.scalars)
    rows = types[node.inputs[1] if OPS[node.op].state else node.output.name].shape[0]
    return Instance(kernel, tuple(buffers), scalars, rows)


@cache
def _specialized(
    function: KernelFunction,
    dims: tuple[tuple[str, int | str], ...],
    constants: tuple[tuple[str, Constant], ...],
) -> Kernel:
    """Layers are alike: a model of 30 needs each kernel once."""
    return specialize(function, dict(dims), dict(constants))


def prologue_hole(op: str) -> str:
    """The hole that a kernel must have for this op to prepare its input."""
    return "pairs" if OPS[op].pairwise else "prologue"


def hole_steps(hole: str, node: Node) -> tuple[Applied, ...]:
    """What fills a hole: the node's prologue or epilogue, or, for "apply", the node's own op.

    "prologue" and "epilogue" take 16 neighbours, "pairs" 16 of the first half of a head and the 16
    half a head behind them, as one vector.
    """
    if hole in ("prologue", "pairs"):
        return node.prologue
    if hole == "epilogue":
        return node.epilogue
    return (Applied(node.op, ("_", *node.inputs[1:]), node.attrs), *node.epilogue)


def _step(library: Library, row: KernelDef, applied: Applied) -> InlineFunction:
    step = library.steps.get(applied.op)
    if step is None or applied.inputs[:1] != ("_",):
        raise GraphError(f"{applied.op} cannot be fused into {row.name}")
    return step


def _bind_dims(
    kernel: str, parameter: Parameter, shape: tuple[Extent, ...], dims: dict[str, Extent]
) -> None:
    """Name the sizes of a buffer. Raises GraphError where the node contradicts the kernel."""
    if len(parameter.dims) != len(shape):
        raise GraphError(f"{kernel}: {parameter.name} has {len(parameter.dims)} dims, not {shape}")
    for dim, size in zip(parameter.dims, shape, strict=True):
        expected = Extent.of(dim) if isinstance(dim, int) else dims.setdefault(dim, size)
        if expected != size:
            raise GraphError(f"{kernel}: {parameter.name} has size {size} where {dim}={expected}")


def _static_or_alias(dims: Mapping[str, Extent], shared: tuple[str, ...]) -> dict[str, int | str]:
    """Numbers for static sizes, but for those that are `shared`.

    Equal run-time sizes share the first name, so also one scalar.
    """
    bound: dict[str, int | str] = {}
    first: dict[Extent, str] = {}
    for name, size in dims.items():
        static = size.static
        if name in shared:
            continue
        if static is not None:
            bound[name] = static
        elif first.setdefault(size, name) != name:
            bound[name] = first[size]
    return bound
