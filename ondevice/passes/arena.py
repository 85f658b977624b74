"""Which values live in the arena, and how large they are."""

from __future__ import annotations

from ondevice.dims import Extent
from ondevice.errors import GraphError
from ondevice.graph.graph import Graph, TensorType
from ondevice.graph.ops import ACTIVATIONS, OPS
from ondevice.quant.scheme import activation_bytes


def arena_sizes(graph: Graph) -> dict[str, Extent]:
    """Bytes of every value in the arena: results of pure ops, except what leaves the step."""
    values = [n.output for n in graph.nodes if not OPS[n.op].state]
    return {v.name: size_bytes(v.type) for v in values if v.name not in graph.outputs}


def size_bytes(type_: TensorType) -> Extent:
    """Bytes of an activation. GraphError where two of its dims are symbolic."""
    if type_.scheme == ACTIVATIONS:
        return activation_bytes(type_.shape[0], type_.shape[1].static or 0)
    size = Extent.of(type_.dtype.bytes)
    for dim in type_.shape:
        static = dim.static
        if static is not None:
            size = size * static
        elif size.static is not None:
            size = dim * size.static
        else:
            raise GraphError(f"{type_} has two symbolic dims; an arena value may have one")
    return size
