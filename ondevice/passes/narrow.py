"""Rows that nobody asks for are not computed: the last layer of a prompt serves only its logits."""

from __future__ import annotations

from dataclasses import replace

from ondevice.graph.graph import Graph, Node, TensorType, Value
from ondevice.graph.ops import OPS
from ondevice.passes.context import Context


def narrow(graph: Graph, context: Context) -> Graph:
    """Takes `select_rows` from behind ops that compute each row by itself to in front of them."""
    selections = [node for node in graph.nodes if node.op == "select_rows"]
    if len(selections) != 1:
        return graph
    return _Narrowing(graph, selections[0]).result()


class _Narrowing:
    """The values that only the selected rows of are wanted get those rows alone."""

    def __init__(self, graph: Graph, selection: Node) -> None:
        self.graph, self.selection = graph, selection
        self.types = graph.types()
        self.rows = self.types[selection.inputs[0]].shape[0]
        self.fewer = selection.output.type.shape[0]
        self.names = {selection.output.name: selection.output.name}  # old value -> its rows
        self.nodes: list[Node] = []

    def result(self) -> Graph:
        whole = self._wanted_whole()
        for node in self.graph.nodes:
            if node is self.selection:
                self.names[node.output.name] = self._selected(node.inputs[0])
            elif node.output.name in whole or not OPS[node.op].rowwise:
                self.nodes.append(replace(node, inputs=self._renamed(node.inputs)))
            else:
                self._narrowed(node)
        outputs = self._renamed(self.graph.outputs)
        return replace(self.graph, nodes=tuple(self.nodes), outputs=outputs)

    def _wanted_whole(self) -> set[str]:
        """Values of which something wants every row that there is."""
        whole = set(self.graph.outputs)
        for node in reversed(self.graph.nodes):
            if node is self.selection:
                continue
            if not OPS[node.op].rowwise or node.output.name in whole:
                whole.update(node.reads())
        return whole

    def _narrowed(self, node: Node) -> None:
        inputs = tuple(
            self._selected(name) if self._has_rows(self.types[name]) else name
            for name in node.inputs
        )
        type_ = replace(node.output.type, shape=(self.fewer, *node.output.type.shape[1:]))
        self.nodes.append(replace(node, inputs=inputs, output=Value(node.output.name, type_)))
        self.names[node.output.name] = node.output.name

    def _selected(self, name: str) -> str:
        """The name of the selected rows of a value."""
        if name not in self.names:
            type_ = self.types[name]
            type_ = replace(type_, shape=(self.fewer, *type_.shape[1:]))
            self.names[name] = f"{name}.rows"
            inputs = name, self.selection.inputs[1]
            node = replace(self.selection, inputs=inputs, output=Value(self.names[name], type_))
            self.nodes.append(node)
        return self.names[name]

    def _renamed(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """`names`, of which one may be what the selection gave."""
        selected = self.selection.output.name
        return tuple(self.names[selected] if name == selected else name for name in names)

    def _has_rows(self, type_: TensorType) -> bool:
        return bool(type_.shape) and type_.shape[0] == self.rows
