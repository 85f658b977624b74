"""Small graphs to run passes on: traced models, random graphs, and values for their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ondevice import targets
from ondevice.bundle.program import KvCache, Program
from ondevice.dtypes import f32, i32
from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import Graph, TensorType, Value
from ondevice.graph.interpret import interpret
from ondevice.graph.verify import verify
from ondevice.kernels import LIBRARY
from ondevice.models import FAMILIES, trace
from ondevice.passes import PASSES, SCHEDULE
from ondevice.passes.context import Context, VariantKernels
from ondevice.passes.schedule import Frame, schedule
from ondevice.quant.activations import quantize_activations
from ondevice.quant.policy import WeightPlan, plan
from ondevice.recipe import QuantRecipe

Array = npt.NDArray[Any]

CONTEXT = Context(targets.load("host"), LIBRARY)
VOCAB = 40
TINY = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
MODELS: dict[str, tuple[str, dict[str, object], str]] = {
    "llama": ("LlamaForCausalLM", {}, "f32"),
    "llama-tied-f16": ("LlamaForCausalLM", {"tie_word_embeddings": True}, "f16"),
    "llama-biases": ("LlamaForCausalLM", BIASES, "f32"),
    "qwen2": ("Qwen2ForCausalLM", {}, "f32"),
    "qwen2-int8": ("Qwen2ForCausalLM", {}, "int8_g256"),
    "llama-one-layer": ("LlamaForCausalLM", {"num_hidden_layers": 1}, "f32"),
}


@dataclass(frozen=True)
class Model:
    """A graph before any pass, and what a Program of it needs besides."""

    graph: Graph
    frame: Frame

    def after_each_pass(self, disabled: tuple[str, ...] = ()) -> Iterator[tuple[str, Graph]]:
        """(name, graph) after each pass, those of `disabled` in their trivial form."""
        graph = self.graph
        for row in PASSES:
            graph = (row.trivial if row.name in disabled else row.rewrite)(graph, CONTEXT)
            yield row.name, verify(graph)

    def planned(self, disabled: tuple[str, ...] = ()) -> Graph:
        """The graph after the last pass."""
        return list(self.after_each_pass(disabled))[-1][1]

    @cache  # noqa: B019 - models of tests may live as long as their process
    def program(self, disabled: tuple[str, ...] = ()) -> tuple[Program, tuple[VariantKernels, ...]]:
        return schedule(
            self.planned(disabled), CONTEXT, self.frame, barriers_everywhere=SCHEDULE in disabled
        )


def frame(weights: WeightPlan, kv: KvCache) -> Frame:
    return Frame(
        name="tiny",
        vocab_size=VOCAB,
        context_tokens=64,
        prefill_chunk_tokens=64,
        logit_rows=8,
        kv=kv,
        ropes=(),
        weights=weights.entries,
        weights_bytes=weights.size_bytes,
    )


@cache
def traced(name: str) -> Model:
    """The model of this name in MODELS."""
    architecture, changes, scheme = MODELS[name]
    family = FAMILIES[architecture]
    config = family.parse_config(TINY | changes)
    weights = plan(family.weights(config).shapes(), QuantRecipe(default=scheme))
    graph = trace(family, config, weight_types=weights.types)
    kv = KvCache(config.layers, config.kv_heads, config.head_dim, f32)
    return Model(verify(quantize_activations(graph)), frame(weights, kv))


RANDOM_SHAPES = {
    "table": (VOCAB, 8),
    "square": (8, 8),
    "up": (20, 8),
    "up.again": (20, 8),
    "down": (8, 20),
    "norm.8": (8,),
    "norm.20": (20,),
}
KINDS = ("matmul", "add", "mul", "silu", "add_bias", "rmsnorm", "normalize")


@st.composite
def random_models(draw: st.DrawFn) -> Model:
    """Graphs with equal nodes, unused nodes, and values with one, several or no readers."""
    scheme = draw(st.sampled_from(["f32", "f16", "int8_g256"]))
    weights = plan(RANDOM_SHAPES, QuantRecipe(default=scheme))
    build = GraphBuilder("random", weights.types)
    tokens = build.input("tokens", TensorType.of(i32, "S"))
    values = [build.node("embed", tokens, build.weight("table"))]
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12)):
        values.append(random_node(draw, build, kind, values))
    graph = build.finish(draw(st.sampled_from(values)))
    if draw(st.booleans()):
        graph = quantize_activations(graph)
    return Model(verify(graph), frame(weights, KvCache(1, 1, 8, f32)))


def random_node(draw: st.DrawFn, build: GraphBuilder, kind: str, values: list[Value]) -> Value:
    """One more node over some of `values`, each f32[S, 8] or f32[S, 20]."""
    x = draw(st.sampled_from(values))
    width = x.type.shape[1].static
    if kind in ("add", "mul"):
        return build.node(kind, x, draw(st.sampled_from([v for v in values if v.type == x.type])))
    if kind == "silu":
        return build.node("silu", x)
    if kind == "matmul":
        names = [n for n, shape in RANDOM_SHAPES.items() if shape[1:] == (width,) and n != "table"]
        return build.node("matmul", x, build.weight(draw(st.sampled_from(names))))
    norm = build.weight(f"norm.{width}")
    if kind == "add_bias":
        return build.node("add_bias", x, norm)
    if kind == "rmsnorm":
        return build.node("rmsnorm", x, norm, eps=1e-5)
    other = draw(st.sampled_from([v for v in values if v.type == x.type]))
    return build.node("normalize", x, build.node("rms_scale", other, eps=1e-5), norm)


def step_inputs(graph: Graph) -> dict[str, Array]:
    """A ragged step of seven tokens of two conversations, logits of three rows."""
    rng = np.random.default_rng(3)
    sizes = {"S": 7, "L": 3, "B": 2, "P": 4, "T": 1}
    given = {
        "tokens": rng.integers(0, VOCAB, 7),
        "positions": np.array([30, 31, 32, 33, 0, 1, 2]),
        "sequence": np.array([0, 0, 0, 0, 1, 1, 1]),
        "block_table": np.array([[2, 0], [3, 1]]),
        "logit_rows": np.array([3, 6, 0]),
    }
    inputs = {}
    for value in graph.inputs:
        shape = tuple(d.evaluate(sizes) for d in value.type.shape)
        array = given.get(value.name)
        floats = rng.standard_normal(shape).astype(np.float32)
        inputs[value.name] = floats if array is None else array.astype(np.int32)
    return inputs


def random_weights(graph: Graph) -> dict[str, Array]:
    def array(value: Value) -> Array:
        rng = np.random.default_rng(list(value.name.encode()))
        shape = tuple(d.evaluate({}) for d in value.type.shape)
        return rng.standard_normal(shape).astype(np.float32)

    return {value.name: array(value) for value in graph.weights}


def meaning(graph: Graph, weights: Mapping[str, Array]) -> list[Array]:
    """The outputs of `step_inputs`, in order: a pass may rename them."""
    return list(interpret(graph, step_inputs(graph), weights).values())
