"""PASSES: the pipeline between a traced graph and the launch table, one named row each.

Every pass is a pure function `(graph, context) -> graph`. Switched off, it takes its trivial form,
which does the least that later stages need; the tokens stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ondevice.graph.graph import Graph
from ondevice.passes.canonicalize import canonicalize
from ondevice.passes.context import Context
from ondevice.passes.fold import fold
from ondevice.passes.fuse import fuse
from ondevice.passes.narrow import narrow
from ondevice.passes.partition import partition
from ondevice.passes.plan_memory import plan_memory, plan_separately
from ondevice.passes.select import select, select_first
from ondevice.passes.split import split
from ondevice.passes.tile import tile, tile_default

Rewrite = Callable[[Graph, Context], Graph]


def unchanged(graph: Graph, context: Context) -> Graph:
    """The trivial form of passes that only improve."""
    return graph


@dataclass(frozen=True)
class Pass:
    """`rewrite` is the pass, `trivial` what runs where a recipe disables it."""

    name: str
    rewrite: Rewrite
    trivial: Rewrite = unchanged


PASSES = (
    Pass("canonicalize", canonicalize),
    Pass("fold", fold),
    Pass("narrow", narrow),
    Pass("fuse", fuse),
    Pass("split", split),
    Pass("partition", partition, partition),
    Pass("select", select, select_first),
    Pass("tile", tile, tile_default),
    Pass("plan_memory", plan_memory, plan_separately),
)
SCHEDULE = "schedule"  # the last stage by name: Graph -> Program, trivially with a barrier each
PASS_NAMES = (*(row.name for row in PASSES), SCHEDULE)
