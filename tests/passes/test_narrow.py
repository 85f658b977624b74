"""Of the last layer only the rows are computed whose logits are wanted."""

from __future__ import annotations

from ondevice.dims import Extent
from ondevice.graph.text import parse_graph
from ondevice.passes.narrow import narrow

from .models import CONTEXT, traced

ALL, WANTED = Extent.of("S"), Extent.of("L")

USED_WHOLE = """\
graph "g"
input x: f32[S, 8]
input rows: i32[L]
weight w: f32[8, 8]
a: f32[S, 8] = matmul(x, w)
b: f32[S, 8] = silu(a)
c: f32[S, 8] = add(a, x)
d: f32[S, 8] = add(b, c)
e: f32[L, 8] = select_rows(d, rows)
return (e, b)
"""


def test_the_last_layer_computes_wanted_rows() -> None:
    graph = narrow(traced("llama").graph, CONTEXT)
    rows = {node.output.name: node.output.type.shape[0] for node in graph.nodes}
    assert all(rows[f"layers.0.mlp.{part}"] == ALL for part in ("mul", "add"))
    assert all(rows[f"layers.1.mlp.{part}"] == WANTED for part in ("mul", "add"))
    assert rows["layers.1.attention.attention"] == ALL
    assert rows["layers.1.attention.add"] == WANTED


def test_what_is_wanted_whole_stays_whole() -> None:
    graph = narrow(parse_graph(USED_WHOLE), CONTEXT)
    rows = {node.output.name: node.output.type.shape[0] for node in graph.nodes}
    assert rows == {"a": ALL, "b": ALL} | dict.fromkeys(
        ("a.rows", "x.rows", "c", "b.rows", "d"), WANTED
    )
    assert graph.outputs == ("d", "b")
