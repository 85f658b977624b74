"""verify: the rules that every graph keeps, checked after each pass."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ondevice.errors import GraphError
from ondevice.graph.graph import Applied, Graph, Node, TensorType
from ondevice.graph.ops import op_named

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]*")


def verify(graph: Graph) -> Graph:
    """The graph itself. Raises GraphError naming the first node that breaks a rule, and its source.

    Names are unique and defined before use; types are those that the ops infer; ops and attributes
    exist; fused ops are elementwise, those of a prologue or pairwise; a state (kv) is never read
    after an op has changed it; row ranges of choices are not empty; storage names values of the
    graph.
    """
    types: dict[str, TensorType] = {}
    for value in (*graph.inputs, *graph.weights):
        _define(graph.name, value.name, value.type, types)
    stale: dict[str, str] = {}  # a state that was changed -> the value it became
    for node in graph.nodes:
        where = f"{graph.name}: {node.output.name} = {node.op}(...)"
        where += f" from {node.source}" if node.source else ""
        try:
            _check_node(node, types, stale)
        except GraphError as error:
            raise GraphError(f"{where}: {error}") from None
        _define(where, node.output.name, node.output.type, types)
    _check_outputs(graph, types, stale)
    return graph


def infer_node(node: Node, types: Mapping[str, TensorType]) -> TensorType:
    """The type of a node's result, its fused ops included. Raises GraphError."""
    op = op_named(node.op)
    inputs = [types[name] for name in node.inputs]
    for applied in node.prologue:
        if len(inputs) <= op.fed:
            raise GraphError("a prologue needs an input to apply to")
        inputs[op.fed] = _infer_applied(applied, inputs[op.fed], types)
    result = op.infer_type(inputs, node.attrs)
    for applied in node.epilogue:
        if not op_named(applied.op).elementwise:
            raise GraphError(f"{applied.op} is not elementwise, so it cannot follow {node.op}")
        result = _infer_applied(applied, result, types)
    return result


def _infer_applied(
    applied: Applied, element: TensorType, types: Mapping[str, TensorType]
) -> TensorType:
    op = op_named(applied.op)
    if not (op.elementwise or op.pairwise):
        raise GraphError(f"{applied.op} is not elementwise, so it cannot be fused")
    if applied.inputs.count("_") != 1:
        raise GraphError(f'the fused {applied.op} must read "_" once')
    inputs = [element if name == "_" else types[name] for name in applied.inputs]
    result = op.infer_type(inputs, applied.attrs)
    if result != element:
        raise GraphError(f"the fused {applied.op} changes {element} to {result}")
    return result


def _define(where: str, name: str, type_: TensorType, types: dict[str, TensorType]) -> None:
    if not NAME.fullmatch(name):
        raise GraphError(f"{where}: {name!r} is not a name: letters, digits, '_' and '.' only")
    if name in types:
        raise GraphError(f"{where}: {name} is defined twice")
    types[name] = type_


def _check_node(node: Node, types: Mapping[str, TensorType], stale: dict[str, str]) -> None:
    for name in node.reads():
        if name not in types:
            raise GraphError(f"{name} is used before it is defined")
        if name in stale:
            raise GraphError(f"{name} is read after it became {stale[name]}")
    inferred = infer_node(node, types)
    if inferred != node.output.type:
        raise GraphError(f"its type is {node.output.type}, but the op gives {inferred}")
    for choice in node.choices:
        if not 0 <= choice.min_rows <= choice.max_rows:
            raise GraphError(f"{choice.kernel} has rows {choice.min_rows}..{choice.max_rows}")
        if not 0 <= choice.min_spans <= choice.max_spans:
            raise GraphError(f"{choice.kernel} has spans {choice.min_spans}..{choice.max_spans}")
    op = op_named(node.op)
    if op.state:
        stale[node.inputs[op.inputs.index(op.state)]] = node.output.name


def _check_outputs(graph: Graph, types: Mapping[str, TensorType], stale: Mapping[str, str]) -> None:
    for name in graph.outputs:
        if name not in types:
            raise GraphError(f"{graph.name}: the output {name} is not defined")
        if name in stale:
            raise GraphError(f"{graph.name}: the output {name} has become {stale[name]}")
    stored: set[str] = set()
    for name, slot in graph.storage:
        if name not in types or name in stored or slot < 0:
            raise GraphError(f"{graph.name}: storage of {name} in slot {slot} is not possible")
        stored.add(name)
