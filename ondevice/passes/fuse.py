"""Elementwise ops move into the ops around them, so their results never reach memory.

An op applied to a matmul's result becomes its epilogue; an op that only prepares the input of
others becomes the prologue of each of them, computed again per tile in worker scratch: little
arithmetic beside the tile's own, for a whole tensor that is neither written nor read back. So may
a pairwise op, whose elements depend on one another within a head only.
"""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Applied, Graph, Node
from ondevice.graph.ops import OPS
from ondevice.lang.library import prologue_hole
from ondevice.passes.context import Context

COMMUTATIVE = ("add", "mul")


def fuse(graph: Graph, context: Context) -> Graph:
    """Fills prologues and epilogues until nothing more fits."""
    graph = _fill_epilogues(graph, context)
    return _fill_prologues(graph, context)


def _fill_epilogues(graph: Graph, context: Context) -> Graph:
    nodes: dict[str, Node] = {}  # by output, in order
    users = graph.users()
    order = {node.output.name: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        fused = None
        if OPS[node.op].elementwise and not node.prologue:
            for name in _anchors(node, order):
                anchor = nodes.get(name)
                if anchor is None or len(users[name]) != 1 or name in graph.outputs:
                    continue
                if node.reads().count(name) == 1 and _takes(context, graph, anchor, "epilogue"):
                    fused = _with_epilogue(anchor, node, name)
                    del nodes[name]
                    break
        nodes[node.output.name] = fused or node
    return graph.with_nodes(tuple(nodes.values()))


def _anchors(node: Node, order: dict[str, int]) -> list[str]:
    """Inputs that may become "_", the one computed last first: what it needs is then ready."""
    inputs = node.inputs if node.op in COMMUTATIVE else node.inputs[:1]
    return sorted((n for n in inputs if n in order), key=lambda n: order[n], reverse=True)


def _with_epilogue(anchor: Node, node: Node, name: str) -> Node:
    others = tuple(other for other in node.inputs if other != name)
    step = Applied(node.op, ("_", *others), node.attrs)
    return replace(
        anchor,
        output=node.output,
        epilogue=(*anchor.epilogue, step, *node.epilogue),
        source=anchor.source,
    )


def _fill_prologues(graph: Graph, context: Context) -> Graph:
    users = graph.users()
    absorbed: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        name = node.output.name
        if _is_prologue(graph, context, node, users[name]):
            absorbed[name] = node
            continue
        fed = OPS[node.op].fed
        if len(node.inputs) > fed and node.inputs[fed] in absorbed:
            before = absorbed[node.inputs[fed]]
            step = Applied(before.op, ("_", *before.inputs[1:]), before.attrs)
            inputs = (*node.inputs[:fed], before.inputs[0], *node.inputs[fed + 1 :])
            prologue = (step, *before.epilogue, *node.prologue)
            node = replace(node, inputs=inputs, prologue=prologue)
        nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _is_prologue(graph: Graph, context: Context, node: Node, users: list[Node]) -> bool:
    """Whether every user of a node can compute it on the way in."""
    name, op = node.output.name, OPS[node.op]
    if not (op.elementwise or op.pairwise) or name in graph.outputs or not users or node.prologue:
        return False
    return all(
        _takes(context, graph, user, prologue_hole(node.op))
        and user.inputs[OPS[user.op].fed] == name
        and user.reads().count(name) == 1
        for user in users
    )


def _takes(context: Context, graph: Graph, node: Node, hole: str) -> bool:
    """Whether all kernels that can compute `node` have the hole."""
    if OPS[node.op].elementwise:
        return False
    rows = context.library.candidates(node, graph.types())
    return all(hole in row.holes for row in rows)
