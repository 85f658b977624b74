"""What a model family is, and how one step of it becomes a Graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ondevice.bundle.program import KV_BLOCK_TOKENS, Rope
from ondevice.checkpoint.weights import WeightMap
from ondevice.dtypes import DType, f32, i32
from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import Graph, TensorType, Value
from ondevice.graph.kv_pool import kv_type


@dataclass(frozen=True)
class ModelConfig:
    """What every family has; a family's own Config adds to it."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    rope: Rope


@dataclass(frozen=True)
class Step:
    """The inputs of one step over a ragged batch."""

    tokens: Value  # i32[S]
    positions: Value  # i32[S] position of the token in its conversation
    sequence: Value  # i32[S] row of the block table
    block_table: Value  # i32[B, W]
    logit_rows: Value  # i32[L] rows of [S] whose logits are wanted
    rope: Value  # f32[S, D] cos of D/2 angles, then sin
    kv: Value  # the pool of KV blocks, as graph.kv_pool has it


Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True)
class Family(Generic[Config]):
    """One row of FAMILIES.

    `parse_config` reads config.json and raises CheckpointError for what it does not know.
    `weights` names every weight with its shape. `forward` appends one step to the builder and
    returns (logits f32[L, vocab], kv).
    """

    name: str
    parse_config: Callable[[Mapping[str, object]], Config]
    weights: Callable[[Config], WeightMap]
    forward: Callable[[GraphBuilder, Config, Step], tuple[Value, Value]]


def trace(
    family: Family[Config],
    config: Config,
    *,
    weight_types: Mapping[str, TensorType] | None = None,
    context_tokens: int | None = None,
    kv_dtype: DType = f32,
) -> Graph:
    """One step of the model as a Graph.

    `weight_types` (our name -> type) replaces plain f32 where a quantization plan has chosen;
    `context_tokens` (default: the model's own) sets the width of the block table.
    """
    types = {
        name: TensorType.of(f32, *shape) for name, shape in family.weights(config).shapes().items()
    }
    build = GraphBuilder(family.name, types | dict(weight_types or {}))
    width = -(-(context_tokens or config.context_tokens) // KV_BLOCK_TOKENS)
    step = Step(
        tokens=build.input("tokens", TensorType.of(i32, "S")),
        positions=build.input("positions", TensorType.of(i32, "S")),
        sequence=build.input("sequence", TensorType.of(i32, "S")),
        block_table=build.input("block_table", TensorType.of(i32, "B", width)),
        logit_rows=build.input("logit_rows", TensorType.of(i32, "L")),
        rope=build.input("rope", TensorType.of(f32, "S", 2 * len(config.rope.inv_freq))),
        kv=build.input("kv", kv_type(config.layers, config.kv_heads, config.head_dim, kv_dtype)),
    )
    logits, kv = family.forward(build, config, step)
    return build.finish(logits, kv)
