"""interpret: what a graph means, by running each op's NumPy reference in order."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.graph.graph import Applied, Graph, Node
from ondevice.graph.kv_pool import Array
from ondevice.graph.ops import op_named


def interpret(
    graph: Graph, inputs: Mapping[str, Array], weights: Mapping[str, Array]
) -> dict[str, Array]:
    """The graph's outputs by name.

    `inputs` and `weights` map the names of the graph's inputs and weights to arrays; a quantized
    weight is given dequantized, as float32. Raises KeyError where one is missing.
    """
    values: dict[str, Array] = {v.name: inputs[v.name] for v in graph.inputs}
    values |= {v.name: weights[v.name] for v in graph.weights}
    for node in graph.nodes:
        values[node.output.name] = evaluate(node, values)
    return {name: values[name] for name in graph.outputs}


def evaluate(node: Node, values: Mapping[str, Array]) -> Array:
    """The value of one node, its fused ops included."""
    op = op_named(node.op)
    inputs = [values[name] for name in node.inputs]
    for applied in node.prologue:
        inputs[op.fed] = apply(applied, inputs[op.fed], values)
    result: Array = op.reference(*inputs, **dict(node.attrs))
    for applied in node.epilogue:
        result = apply(applied, result, values)
    return result


def apply(applied: Applied, element: Array, values: Mapping[str, Array]) -> Array:
    """One fused op with "_" bound to `element`."""
    inputs = [element if name == "_" else values[name] for name in applied.inputs]
    result: Array = op_named(applied.op).reference(*inputs, **dict(applied.attrs))
    return result
