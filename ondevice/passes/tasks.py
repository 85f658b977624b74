"""A node as the steps of one range of sizes compute it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ondevice.bundle.program import ALL_SPANS, KV_SPAN_TOKENS
from ondevice.dims import Extent
from ondevice.graph.graph import Choice, Node
from ondevice.lang.library import ALL_ROWS, Instance
from ondevice.passes.traffic import Step, Traffic

TYPICAL_ROWS = 512
TYPICAL_SPANS = 4


@dataclass(frozen=True)
class Regime:
    """Steps with as many rows, counted by `symbol`, and as many spans, both ends included."""

    symbol: str
    rows: tuple[int, int]
    spans: tuple[int, int]

    def allows(self, choice: Choice) -> bool:
        return (
            choice.min_rows <= self.rows[1]
            and self.rows[0] <= choice.max_rows
            and choice.min_spans <= self.spans[1]
            and self.spans[0] <= choice.max_spans
        )

    @property
    def step(self) -> Step:
        """The largest step; one of a typical size where there is none."""
        rows = min(self.rows[1], TYPICAL_ROWS)
        spans = min(self.spans[1], TYPICAL_SPANS)
        return Step(rows, rows, max(0, spans * KV_SPAN_TOKENS - rows))

    def most(self, *extents: Extent) -> int | None:
        """The largest value of the product of extents; None where it has no bound."""
        bounds = {self.symbol: self.rows[1], "T": self.spans[1]}
        ends = {ALL_ROWS, ALL_SPANS}
        names = {name for extent in extents for name, _ in extent.terms}
        if any(bounds.get(name) is None or bounds[name] in ends for name in names):
            return None
        return math.prod(extent.evaluate(bounds) for extent in extents)


@dataclass(frozen=True)
class Task:
    """A node as one regime computes it: the kernel of each CPU variant, and what it touches."""

    regime: Regime
    node: Node
    choice: Choice
    instances: tuple[Instance, ...]
    extents: tuple[Extent, ...]  # of the parallel loop
    chunk: int
    moved: Traffic  # in the largest step or one of a typical size
    reads: frozenset[Hashable]
    writes: frozenset[Hashable]

    def touches(self, other: Task) -> bool:
        """Whether the order of the two matters."""
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)

    @cached_property
    def numbers(self) -> list[tuple[str, Extent]]:
        """Task variables that take more than one value, outermost first."""
        pairs = zip(self.instances[0].kernel.tasks, self.extents, strict=True)
        return [(name, extent) for name, extent in pairs if self.regime.most(extent) != 1]

    @property
    def output(self) -> str:
        return self.node.output.name


def regimes(symbol: str, nodes: Sequence[Node]) -> list[Regime]:
    """All ranges of rows and spans in which each of the nodes has one kernel; one row is alone."""
    choices = [choice for node in nodes for choice in node.choices]
    starts = {c.min_rows for c in choices} | {c.max_rows + 1 for c in choices}
    rows = _ranges({2, *starts}, ALL_ROWS)
    spans = _ranges({c.min_spans for c in choices} | {c.max_spans + 1 for c in choices}, ALL_SPANS)
    return [Regime(symbol, r, s) for s in spans for r in rows]


def _ranges(starts: set[int], end: int) -> list[tuple[int, int]]:
    """The ranges up to `end` that begin at these numbers; steps have a row and a span at least."""
    inner = sorted(start for start in starts if 1 < start <= end)
    return [(start, stop - 1) for start, stop in pairwise((0, *inner, end + 1))]
