"""Which kernel computes a node, by the number of rows it gets when the step runs."""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Choice, Graph, Special
from ondevice.lang.library import ALL_ROWS, KernelDef
from ondevice.passes.context import Context


def select(graph: Graph, context: Context) -> Graph:
    """Gives each node all kernels that can compute it, each for its range of rows and depth."""
    types = graph.types()
    nodes = []
    for node in graph.nodes:
        rows = context.library.candidates(node, types)
        choices = tuple(
            Choice(
                row.name,
                row.tile,
                row.min_rows,
                row.max_rows,
                specials(row, context),
                row.min_spans,
                row.max_spans,
            )
            for row in rows
        )
        nodes.append(replace(node, choices=choices))
    return graph.with_nodes(tuple(nodes))


def specials(row: KernelDef, context: Context) -> tuple[Special, ...]:
    """The rows that stand in for `row` on CPU variants that have what they need."""
    return tuple(
        Special(variant.name, other.name, other.tile)
        for other in context.library.kernels.values()
        for variant in context.target.cpu.variants
        if other.instead_of == row.name
        and other.needs <= set(variant.features)
        and not other.lacks & set(variant.features)
    )


def select_first(graph: Graph, context: Context) -> Graph:
    """The trivial form: the first legal kernel, whatever the rows."""
    types = graph.types()
    nodes = []
    for node in graph.nodes:
        row = context.library.candidates(node, types)[0]
        nodes.append(replace(node, choices=(Choice(row.name, row.tile, 0, ALL_ROWS),)))
    return graph.with_nodes(tuple(nodes))
