"""Elementwise ops move into the ops around them, so their results never reach memory.

An op applied to a matmul's result becomes its epilogue; an op that only prepares the input of
others becomes the prologue of each of them, computed again per tile in worker scratch: little
arithmetic beside the tile's own, for a whole tensor that is neither written nor read back. So may
a pairwise op, whose elements depend on one another within a head only.

What fits is fused where that lowers the bytes that launches move (`traffic`), counted in a prompt's
step and a token's step together: an op that many read and that itself reads much stays alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ondevice.graph.graph import Applied, Graph, Node
from ondevice.graph.ops import OPS
from ondevice.lang.library import prologue_hole
from ondevice.passes.context import Context
from ondevice.passes.traffic import Step, traffic

COMMUTATIVE = ("add", "mul")
PROMPT, TOKEN = Step(512), Step(1)  # what is counted


@dataclass(frozen=True)
class Fusion:
    """An op that could be fused into all of its neighbours `into`, and the bytes that this saves.

    Where they are not positive together, it was left alone.
    """

    op: str
    source: str
    into: tuple[str, ...]
    saved_by_prompt: int
    saved_by_token: int

    @property
    def done(self) -> bool:
        return self.saved_by_prompt + self.saved_by_token > 0


def fuse(graph: Graph, context: Context) -> Graph:
    """Fills prologues and epilogues until nothing more fits or pays."""
    return fuse_by_bytes(graph, context)[0]


def fuse_by_bytes(graph: Graph, context: Context) -> tuple[Graph, tuple[Fusion, ...]]:
    """The fused graph, and everything that could be fused."""
    scale = Scale(graph)
    graph = _fill_epilogues(graph, context, scale)
    graph = _fill_prologues(graph, context, scale)
    return graph, tuple(scale.seen)


class Scale:
    """Weighs what could be fused in a graph, and remembers all of it."""

    def __init__(self, graph: Graph) -> None:
        self.weights = {value.name for value in graph.weights}
        self.types = graph.types()
        self.seen: list[Fusion] = []

    def pays(self, node: Node, before: Sequence[Node], after: Sequence[Node]) -> bool:
        """Whether to compute `after` in place of `before`, of which `node` goes."""
        saved = [self._moved(before, step) - self._moved(after, step) for step in (PROMPT, TOKEN)]
        into = tuple(n.output.name for n in after)
        self.seen.append(Fusion(node.op, node.output.name, into, *saved))
        return self.seen[-1].done

    def _moved(self, nodes: Sequence[Node], step: Step) -> int:
        return sum(traffic(node, self.weights, self.types, step).total for node in nodes)


def _fill_epilogues(graph: Graph, context: Context, scale: Scale) -> Graph:
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
                    whole = _with_epilogue(anchor, node, name)
                    if scale.pays(node, (anchor, node), (whole,)):
                        fused = whole
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


def _fill_prologues(graph: Graph, context: Context, scale: Scale) -> Graph:
    users = graph.users()
    absorbed: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        name = node.output.name
        if _is_prologue(graph, context, node, users[name]):
            fed = [_with_prologue(node, user) for user in users[name]]
            if scale.pays(node, (node, *users[name]), fed):
                absorbed[name] = node
                continue
        place = OPS[node.op].fed
        if len(node.inputs) > place and node.inputs[place] in absorbed:
            node = _with_prologue(absorbed[node.inputs[place]], node)
        nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _with_prologue(before: Node, node: Node) -> Node:
    fed = OPS[node.op].fed
    step = Applied(before.op, ("_", *before.inputs[1:]), before.attrs)
    inputs = (*node.inputs[:fed], before.inputs[0], *node.inputs[fed + 1 :])
    return replace(node, inputs=inputs, prologue=(step, *before.epilogue, *node.prologue))


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
