"""Fused ops mean what the separate nodes mean; the builder names and types what it appends."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.dtypes import f32
from ondevice.errors import GraphError
from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import TensorType
from ondevice.graph.interpret import interpret
from ondevice.graph.text import parse_graph
from ondevice.graph.verify import verify

SEPARATE = """\
graph "separate"
input x: f32[S, 8]
weight w: f32[4, 8]
weight norm: f32[8]
weight b: f32[4]
scale: f32[S] = rms_scale(x) {eps=1e-05}
n: f32[S, 8] = normalize(x, scale, norm)
up: f32[S, 4] = matmul(n, w)
biased: f32[S, 4] = add_bias(up, b)
gate: f32[S, 4] = silu(biased)
y: f32[S, 4] = add(up, gate)
return (y)
"""

FUSED = """\
graph "fused"
input x: f32[S, 8]
weight w: f32[4, 8]
weight norm: f32[8]
weight b: f32[4]
scale: f32[S] = rms_scale(x) {eps=1e-05}
up: f32[S, 4] = matmul(x, w)
  before normalize(_, scale, norm)
y: f32[S, 4] = matmul(x, w)
  before normalize(_, scale, norm)
  after add_bias(_, b)
  after silu(_)
  after add(up, _)
return (y)
"""


def test_prologue_and_epilogue_mean_what_separate_nodes_mean():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 8)).astype(np.float32)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("w", (4, 8)), ("norm", (8,)), ("b", (4,)))
    }
    results = [
        interpret(verify(parse_graph(text)), {"x": x}, weights)["y"] for text in (SEPARATE, FUSED)
    ]
    np.testing.assert_array_equal(*results)


def test_builder_names_by_scope_and_keeps_names_unique():
    weights = {"layers.0.norm.weight": TensorType.of(f32, 8), "unused": TensorType.of(f32, 1)}
    build = GraphBuilder("scoped", weights)
    x = build.input("x", TensorType.of(f32, "S", 8))
    with build.scope("layers.0"), build.scope("norm"):
        first = build.node("rmsnorm", x, build.weight("weight"), eps=1e-5)
        second = build.node("rmsnorm", first, build.weight("weight"), eps=1e-5)
    graph = verify(build.finish(second))
    assert [n.output.name for n in graph.nodes] == [
        "layers.0.norm.rmsnorm",
        "layers.0.norm.rmsnorm.2",
    ]
    assert {n.source for n in graph.nodes} == {"layers.0.norm"}
    assert [w.name for w in graph.weights] == ["layers.0.norm.weight"]


def test_builder_refuses_at_once():
    build = GraphBuilder("model", {"norm.weight": TensorType.of(f32, 8)})
    x = build.input("x", TensorType.of(f32, "S", 8))
    with pytest.raises(GraphError, match=r"model has no weight 'norm\.wait'; did you mean"):
        build.weight("norm.wait")
    with build.scope("layers.0"), pytest.raises(GraphError, match=r"layers\.0\.add: add takes"):
        build.node("add", x)
    with pytest.raises(GraphError, match="silu has no attribute 'eps'"):
        build.node("silu", x, eps=1.0)
