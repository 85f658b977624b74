"""A pass changes how a graph is computed, never what it means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from ondevice.graph.graph import Graph
from ondevice.graph.text import parse_graph, print_graph
from ondevice.passes import PASSES

from .models import CONTEXT, MODELS, Array, Model, meaning, random_models, random_weights, traced

NAMES = [row.name for row in PASSES]


def assert_same_meaning(graph: Graph, before: Graph) -> None:
    """Equal outputs, but for rounding that differs where a product's shape does."""
    weights = random_weights(before)
    for actual, expected in zip(meaning(graph, weights), meaning(before, weights), strict=True):
        assert_close(actual, expected)


def assert_close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_passes_keep_the_meaning_of_models(name: str) -> None:
    model = traced(name)
    for _, graph in model.after_each_pass():
        assert_same_meaning(graph, model.graph)


@pytest.mark.parametrize("alone", NAMES)
def test_each_pass_alone_keeps_the_meaning(alone: str) -> None:
    model = traced("qwen2")
    others = tuple(name for name in NAMES if name != alone)
    assert_same_meaning(model.planned(others), model.graph)


@settings(max_examples=150, deadline=None)
@given(random_models())
def test_passes_keep_the_meaning_of_random_graphs(model: Model) -> None:
    for _, graph in model.after_each_pass():
        assert_same_meaning(graph, model.graph)


@settings(max_examples=50, deadline=None)
@given(random_models())
def test_texts_after_each_pass_parse_back(model: Model) -> None:
    for _, graph in model.after_each_pass():
        assert parse_graph(print_graph(graph)) == graph


@pytest.mark.parametrize("row", PASSES, ids=NAMES)
def test_passes_do_not_change_what_they_have_done(row) -> None:
    done = dict(traced("llama").after_each_pass())[row.name]
    assert row.rewrite(done, CONTEXT) == done
