"""Compute once what is computed twice, and nothing that is not used."""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Applied, Graph, Node
from ondevice.graph.ops import OPS
from ondevice.passes.context import Context


def fold(graph: Graph, context: Context) -> Graph:
    """Merges equal nodes (common subexpressions) and drops nodes and weights nobody reads."""
    return _drop_unused(_merge_equal(graph))


def _merge_equal(graph: Graph) -> Graph:
    names: dict[str, str] = {}  # a dropped node's output -> the value that replaces it
    seen: dict[object, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = _renamed(node, names)
        key = (node.op, node.inputs, node.attrs, node.prologue, node.epilogue)
        # A state op consumes its input, so no two of them are ever the same computation.
        if not OPS[node.op].state and key in seen:
            names[node.output.name] = seen[key]
            continue
        seen[key] = node.output.name
        nodes.append(node)
    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs)


def _renamed(node: Node, names: dict[str, str]) -> Node:
    def rename(inputs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(name, name) for name in inputs)

    def renamed(steps: tuple[Applied, ...]) -> tuple[Applied, ...]:
        return tuple(replace(step, inputs=rename(step.inputs)) for step in steps)

    return replace(
        node,
        inputs=rename(node.inputs),
        prologue=renamed(node.prologue),
        epilogue=renamed(node.epilogue),
    )


def _drop_unused(graph: Graph) -> Graph:
    used = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.output.name in used:
            used.update(node.reads())
            kept.append(node)
    weights = tuple(w for w in graph.weights if w.name in used)
    return replace(graph, nodes=tuple(reversed(kept)), weights=weights)
