"""Graph: one step of a model as tensors in single-assignment form.

Values are named; a weight is a named reference into the checkpoint, never data. Effects are values:
`kv = kv_write(kv, k, v, ...)`. Passes return new graphs; nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ondevice.bundle.program import ALL_SPANS
from ondevice.dims import Extent
from ondevice.dtypes import DType

Attr = int | float | str | bool
Attrs = tuple[tuple[str, Attr], ...]


@dataclass(frozen=True)
class TensorType:
    """`dtype[shape]`; `scheme` names how a packed tensor is stored ("" means plain row-major).

    The shape is always the logical one; a scheme's padding and packing never show here.
    """

    dtype: DType
    shape: tuple[Extent, ...]
    scheme: str = ""

    @staticmethod
    def of(dtype: DType, *shape: int | str | Extent, scheme: str = "") -> TensorType:
        return TensorType(dtype, tuple(Extent.of(d) for d in shape), scheme)

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(map(str, self.shape))}]"
        return f"{text}:{self.scheme}" if self.scheme else text


@dataclass(frozen=True)
class Value:
    """A named tensor."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Applied:
    """An elementwise or pairwise op fused into an anchor; "_" in its inputs is what it changes."""

    op: str
    inputs: tuple[str, ...]
    attrs: Attrs = ()


@dataclass(frozen=True)
class Special:
    """The kernel or schedule that one CPU variant takes instead."""

    variant: str
    kernel: str
    schedule: Attrs


@dataclass(frozen=True)
class Choice:
    """A kernel that computes a node when the rows of its result lie in [min, max].

    So must the spans of cached positions that the step sees (T).
    """

    kernel: str
    schedule: Attrs
    min_rows: int
    max_rows: int
    specials: tuple[Special, ...] = ()
    min_spans: int = 0
    max_spans: int = ALL_SPANS

    def on(self, variant: str) -> tuple[str, Attrs]:
        """The kernel and schedule for a CPU variant."""
        for special in self.specials:
            if special.variant == variant:
                return special.kernel, special.schedule
        return self.kernel, self.schedule


@dataclass(frozen=True)
class Node:
    """`output = op(inputs)`, with ops applied to the input that `OpDef.fed` says and to its result.

    `device` is set by partition, `choices` by select and tile.
    """

    op: str
    inputs: tuple[str, ...]
    output: Value
    attrs: Attrs = ()
    source: str = ""
    prologue: tuple[Applied, ...] = ()
    epilogue: tuple[Applied, ...] = ()
    device: str = ""
    choices: tuple[Choice, ...] = ()

    def attr(self, name: str) -> Attr:
        """The attribute's value; KeyError where the op has none of that name."""
        return dict(self.attrs)[name]

    def reads(self) -> tuple[str, ...]:
        """Every value this node reads, those of its fused ops included."""
        fused = (n for a in self.prologue + self.epilogue for n in a.inputs if n != "_")
        return (*self.inputs, *fused)


@dataclass(frozen=True)
class Graph:
    """Inputs of a step, weights, nodes in execution order, and the values that leave the step.

    `storage` (set by plan_memory) names the arena slot of each value that lives in the arena.
    """

    name: str
    inputs: tuple[Value, ...]
    weights: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    storage: tuple[tuple[str, int], ...] = ()

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        yield from self.weights
        for node in self.nodes:
            yield node.output

    def types(self) -> dict[str, TensorType]:
        return {v.name: v.type for v in self.values()}

    def users(self) -> dict[str, list[Node]]:
        """For every value, the nodes that read it, in order."""
        users: dict[str, list[Node]] = {v.name: [] for v in self.values()}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads()):
                users[name].append(node)
        return users

    def with_nodes(self, nodes: tuple[Node, ...]) -> Graph:
        return replace(self, nodes=nodes)
