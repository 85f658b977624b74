"""Bytes that a launch moves: what it reads and writes of activations, weights and the KV cache.

Each operand counts once for each launch, however often its tasks load it: a tile that is loaded
again comes from a cache. So the sum over a graph is what must pass the memory level that all cores
share, and fusion pays where it lowers the sum (Welder, OSDI 23).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ondevice.bundle.program import KV_BLOCK_TOKENS, step_sizes
from ondevice.graph.graph import Graph, Node, TensorType
from ondevice.graph.ops import ACTIVATIONS
from ondevice.lang.library import Types
from ondevice.quant.scheme import SCHEMES, activation_shape

ATTENDING = ("attention", "attention_parts", "attention_joined")


@dataclass(frozen=True)
class Step:
    """A step: `rows` tokens of one conversation that has `depth` others."""

    rows: int
    logits: int = 1
    depth: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        return step_sizes(self.rows, self.depth, self.logits)


@dataclass(frozen=True)
class Traffic:
    """Bytes. `read` and `written` are activations and what the engine prepares for the step."""

    read: int = 0
    written: int = 0
    weights: int = 0
    kv: int = 0

    @property
    def activations(self) -> int:
        return self.read + self.written

    @property
    def total(self) -> int:
        return self.activations + self.weights + self.kv

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.read + other.read,
            self.written + other.written,
            self.weights + other.weights,
            self.kv + other.kv,
        )


def graph_traffic(graph: Graph, step: Step, nodes: Iterable[Node] | None = None) -> Traffic:
    """What all nodes of a graph move in a step, or others over its values."""
    weights, types = {value.name for value in graph.weights}, graph.types()
    chosen = graph.nodes if nodes is None else nodes
    return sum((traffic(node, weights, types, step) for node in chosen), Traffic())


def traffic(node: Node, weights: set[str], types: Types, step: Step) -> Traffic:
    """What one node moves in a step, its fused ops included."""
    sizes = step.sizes
    rows = types[node.output.name].shape[0].evaluate(sizes)
    read = packed = kv = 0
    for name in dict.fromkeys(node.reads()):
        type_ = types[name]
        if name in weights:
            # Of a table, the rows that are looked up.
            share = (rows, type_.shape[0].static or 1) if node.op == "embed" else (1, 1)
            packed += value_bytes(type_, sizes) * share[0] // share[1]
        elif len(type_.shape) == 5:  # the KV cache
            kv += _kv_bytes(node, type_, step)
        elif node.op == "select_rows" and name == node.inputs[0]:
            read += value_bytes(types[node.output.name], sizes)
        else:
            read += _activation_bytes(node, name, types, sizes)
    stored = node.op == "kv_write"
    written = 0 if stored else _activation_bytes(node, node.output.name, types, sizes)
    return Traffic(read, written, packed, kv)


def _activation_bytes(node: Node, name: str, types: Types, sizes: Mapping[str, int]) -> int:
    """Bytes of a value that a node reads or writes; of parts of attention, the spans there are."""
    size = value_bytes(types[name], sizes)
    parts = (node.output.name,) if node.op == "attention_parts" else node.inputs[5:6]
    if node.op in ATTENDING and name in parts:
        of_span = int(node.attr("heads")) * (int(node.attr("head_dim")) + 2)
        return size * sizes["T"] * of_span // (types[name].shape[1].static or 1)
    return size


def value_bytes(type_: TensorType, sizes: Mapping[str, int]) -> int:
    """Bytes of a value or weight as it is stored."""
    shape = tuple(dim.evaluate(sizes) for dim in type_.shape)
    if type_.scheme == ACTIVATIONS:
        return math.prod(d.evaluate(sizes) for d in activation_shape(type_.shape[0], shape[1], 1))
    if type_.scheme in SCHEMES:
        return SCHEMES[type_.scheme].packed_bytes(*shape)
    return math.prod(shape) * type_.dtype.bytes


def _kv_bytes(node: Node, pool: TensorType, step: Step) -> int:
    """Keys and values that are stored, or all that the last token sees."""
    _, _, _, heads, block = (dim.static or 1 for dim in pool.shape)
    each = 2 * heads * block // KV_BLOCK_TOKENS * pool.dtype.bytes
    seen = step.depth + step.rows if node.op in ATTENDING else step.rows
    return each * seen
