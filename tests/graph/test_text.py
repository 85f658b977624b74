"""Graphs survive printing and parsing; random ones also verify and run."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.dims import Extent
from ondevice.dtypes import DTYPES, f32
from ondevice.errors import GraphError
from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import Applied, Choice, Graph, Node, Special, TensorType, Value
from ondevice.graph.interpret import interpret
from ondevice.graph.text import parse_graph, print_graph
from ondevice.graph.verify import verify

EXAMPLE = """\
graph "example"
input x: f32[S, 8]
weight w: f32[4, 8]:int4_g32
weight norm: f32[8]
scale: f32[S] = rms_scale(x) {eps=1e-05} from "layers.0.norm"
up: f32[S, 4] = matmul(x, w) from "layers.0.up"
  before normalize(_, scale, norm)
  after silu(_)
  on "cpu"
  choose gemv {rows=4, staged=true, order="k \\"first\\", then n"} for 1..1
  choose matmul for 2..2147483647
store scale in 0
store up in 1
return (up)
"""


def test_example_round_trips():
    graph = verify(parse_graph(EXAMPLE))
    assert print_graph(graph) == EXAMPLE
    node = graph.nodes[1]
    assert node.prologue == (Applied("normalize", ("_", "scale", "norm")),)
    assert dict(node.choices[0].schedule)["order"] == 'k "first", then n'
    assert graph.storage == (("scale", 0), ("up", 1))


def test_comments_and_blank_lines_are_skipped():
    assert parse_graph("# a comment\n\n" + EXAMPLE.replace("store", "# why\nstore", 1)) == (
        parse_graph(EXAMPLE)
    )


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.]{0,6}", fullmatch=True)
FLOATS = st.floats(allow_nan=False)
ATTRS = st.dictionaries(
    NAMES, st.integers() | FLOATS | st.booleans() | st.text(max_size=8), max_size=3
).map(lambda attrs: tuple(attrs.items()))
SIZES = st.integers(0, 10**6)
EXTENTS = st.builds(
    lambda s, rows, const, div, mul: (
        ((Extent.of("S") * s + Extent.of("L") * rows) + const).ceildiv(div) * mul
    ),
    st.integers(0, 3),
    st.integers(0, 3),
    SIZES,
    st.integers(1, 64),
    st.integers(1, 9),
)
TYPES = st.builds(
    TensorType,
    st.sampled_from(list(DTYPES.values())),
    st.lists(EXTENTS, max_size=4).map(tuple),
    st.sampled_from(["", "int4_g32"]),
)
VALUES = st.builds(Value, NAMES, TYPES)
OPERANDS = st.lists(NAMES | st.just("_"), max_size=3).map(tuple)
APPLIED = st.lists(st.builds(Applied, NAMES, OPERANDS, ATTRS), max_size=2).map(tuple)
SPECIALS = st.lists(st.builds(Special, NAMES, NAMES, ATTRS), max_size=2).map(tuple)
CHOICES = st.lists(st.builds(Choice, NAMES, ATTRS, SIZES, SIZES, SPECIALS), max_size=2).map(tuple)
TEXTS = st.text(max_size=8)
NODES = st.builds(Node, NAMES, OPERANDS, VALUES, ATTRS, TEXTS, APPLIED, APPLIED, TEXTS, CHOICES)


@given(
    st.builds(
        Graph,
        TEXTS,
        st.lists(VALUES, max_size=2).map(tuple),
        st.lists(VALUES, max_size=2).map(tuple),
        st.lists(NODES, max_size=3).map(tuple),
        st.lists(NAMES, max_size=2).map(tuple),
        st.lists(st.tuples(NAMES, SIZES), max_size=2).map(tuple),
    )
)
@settings(max_examples=150, deadline=None)
def test_any_graph_round_trips(graph):
    """Well formed or not: the text loses nothing."""
    assert parse_graph(print_graph(graph)) == graph


@st.composite
def legal_graphs(draw: st.DrawFn) -> Graph:
    """A random tower of ops over f32[S, 8]."""
    weights = {"w": TensorType.of(f32, 8, 8), "b": TensorType.of(f32, 8)}
    build = GraphBuilder("random", weights)
    values = [build.input("x", TensorType.of(f32, "S", 8))]
    for _ in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from(["add", "mul", "silu", "add_bias", "matmul", "rmsnorm", "norm"]))
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        if op in ("add", "mul"):
            values.append(build.node(op, x, y))
        elif op == "silu":
            values.append(build.node(op, x))
        elif op == "rmsnorm":
            values.append(build.node(op, x, build.weight("b"), eps=1e-5))
        elif op == "norm":
            scale = build.node("rms_scale", y, eps=1e-5)
            values.append(build.node("normalize", x, scale, build.weight("b")))
        else:
            values.append(build.node(op, x, build.weight("w" if op == "matmul" else "b")))
    return build.finish(values[-1])


@given(legal_graphs())
@settings(max_examples=60, deadline=None)
def test_built_graphs_verify_run_and_mean_the_same_after_the_text(graph):
    back = parse_graph(print_graph(verify(graph)))
    assert back == graph
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((3, 8)).astype(np.float32)}
    types = {v.name: v.type for v in graph.weights}
    weights = {
        name: (0.3 * rng.standard_normal([d.static for d in type_.shape])).astype(np.float32)
        for name, type_ in types.items()
    }
    (left,) = interpret(graph, inputs, weights).values()
    (right,) = interpret(back, inputs, weights).values()
    np.testing.assert_array_equal(left, right)
    assert left.shape == (3, 8)
    assert left.dtype == np.float32


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('graph "example"', "graf", "line 1: expected 'graph'"),
        ("f32[S, 8]", "f32[S, Q]", "line 2: unknown symbol 'Q'"),
        ("f32[S, 8]", "f32[S; 8]", "line 2: not an extent"),
        ("f32[S, 8]", "f32[S, ceil((8)/0)]", "line 2: .* divides by zero"),
        ("f32[S, 8]", "f31[S, 8]", "line 2: unknown element type 'f31'"),
        ("f32[S, 8]", "f32", "line 2: expected a type"),
        ("{eps=1e-05}", "{eps=}", "line 5: expected a number, true, false or a string"),
        ("{eps=1e-05}", "{eps=1e-05", "line 5: expected ','"),
        ('"layers.0.norm"', '"layers', "line 5: expected a string in double quotes"),
        ('"layers.0.norm"', '"\\x"', "line 5: .* is not a string"),
        ("matmul(x, w)", "matmul(x w)", "line 6: expected ','"),
        ("after silu(_)", "behind silu(_)", "line 8: expected 'choose'"),
        ("for 1..1", "for 1", r"line 10: expected '\.\.'"),
        ("in 1\n", "in one\n", "line 13: expected an integer"),
        ("return (up)", "return (up) and more", "line 14: expected nothing more"),
        ("input x: f32[S, 8]", '  on "cpu"', "line 2: an indented line must follow a node"),
    ],
)
def test_malformed_text_is_refused_with_its_line(old, new, message):
    assert old in EXAMPLE
    with pytest.raises(GraphError, match=message):
        parse_graph(EXAMPLE.replace(old, new, 1))


def test_empty_text_is_refused():
    with pytest.raises(GraphError, match="empty"):
        parse_graph("\n")


@given(st.integers(0, len(EXAMPLE) - 1), st.characters(max_codepoint=127))
@settings(max_examples=200, deadline=None)
def test_mutated_text_parses_or_is_refused(position, character):
    mutated = EXAMPLE[:position] + character + EXAMPLE[position + 1 :]
    with contextlib.suppress(GraphError):
        verify(parse_graph(mutated))
