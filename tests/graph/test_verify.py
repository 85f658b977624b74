"""verify names the node that breaks a rule, and where it comes from in the model."""

from __future__ import annotations

import pytest

from ondevice.errors import GraphError
from ondevice.graph.text import parse_graph
from ondevice.graph.verify import verify

STEP = """\
graph "step"
input x: f32[S, 8]
input positions: i32[S]
input sequence: i32[S]
input block_table: i32[B, 4]
input kv: f32[P, 2, 2, 2, 128]
weight w: f32[8, 8]
k: f32[S, 8] = matmul(x, w) from "layers.0.k"
  after mul(_, x)
kv0: f32[P, 2, 2, 2, 128] = kv_write(kv, k, x, positions, sequence, block_table) {layer=0}
y: f32[S, 8] = attention(x, kv0, positions, sequence, block_table) \
{layer=0, heads=2, kv_heads=2, head_dim=4, scale=0.5} from "layers.0"
kv1: f32[P, 2, 2, 2, 128] = kv_write(kv0, k, y, positions, sequence, block_table) {layer=1}
  choose kv_write for 1..2147483647
store k in 0
return (y, kv1)
"""


def test_a_right_graph_is_returned():
    graph = parse_graph(STEP)
    assert verify(graph) is graph


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("k: f32[S, 8]", "k: f32[S, 9]", r"step: k = matmul\(...\) from layers.0.k: its type is"),
        ("matmul(x, w)", "matmul(x, v)", "v is used before it is defined"),
        ("matmul(x, w)", "matmul(x, y)", "y is used before it is defined"),
        ("mul(_, x)", "mul(_, y)", "y is used before it is defined"),
        ("mul(_, x)", "mul(x, x)", 'must read "_" once'),
        ("mul(_, x)", "mul(_, w)", "operand types"),
        ("mul(_, x)", "matmul(_, w)", "matmul is not elementwise"),
        ("after mul(_, x)", "before mul(_, w)", "operand types"),
        ("matmul(x, w)", "matmull(x, w)", "unknown op 'matmull'; did you mean 'matmul'"),
        ("matmul(x, w)", "matmul(x, w) {eps=1.0}", "no attribute 'eps'"),
        ("y: f32[S, 8]", "k: f32[S, 8]", "k is defined twice"),
        ("input sequence", "input x", "x is defined twice"),
        ("attention(x, kv0", "attention(x, kv", "kv is read after it became kv0"),
        ("kv_write(kv0", "kv_write(kv", "kv is read after it became kv0"),
        ("return (y, kv1)", "return (y, kv0)", "the output kv0 has become kv1"),
        ("return (y, kv1)", "return (z)", "the output z is not defined"),
        ("for 1..2147483647", "for 3..2", "kv_write has rows 3..2"),
        ("store k in 0", "store z in 0", "storage of z"),
        ("store k in 0", "store k in -1", "storage of k"),
        ("input x:", "input _x:", "'_x' is not a name"),
    ],
)
def test_a_broken_rule_is_named(old, new, message):
    assert old in STEP
    with pytest.raises(GraphError, match=message):
        verify(parse_graph(STEP.replace(old, new, 1)))
