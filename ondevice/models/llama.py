"""Llama 1, 2, 3 and everything saved as LlamaForCausalLM (arXiv 2302.13971, 2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ondevice.checkpoint.weights import WeightMap, WeightRow
from ondevice.errors import CheckpointError
from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import Value
from ondevice.models.config import ConfigReader
from ondevice.models.family import Family, ModelConfig, Step
from ondevice.models.layers import attention, gated_mlp, linear, norm
from ondevice.models.rotary import parse_rope


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Sizes and switches of the Llama block, which several families share."""

    intermediate_size: int
    norm_eps: float
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False


def parse_config(config: Mapping[str, object]) -> LlamaConfig:
    """Read a Llama config.json. Raises CheckpointError."""
    reader = ConfigReader(config)
    bias = reader.flag("attention_bias", False)
    reader.require("rope_interleaved", False)
    return parse_block(reader, qkv_bias=bias, o_bias=bias, mlp_bias=reader.flag("mlp_bias", False))


def parse_block(
    reader: ConfigReader, *, qkv_bias: bool, o_bias: bool, mlp_bias: bool
) -> LlamaConfig:
    """Read the keys that all families of Llama blocks share, and refuse all others."""
    reader.require("hidden_act", "silu")
    hidden_size = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    head_dim = reader.integer("head_dim", hidden_size // heads)
    context_tokens = reader.integer("max_position_embeddings")
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"config.json: {heads} heads of {head_dim} cannot share {kv_heads} key/value heads"
        )
    parsed = LlamaConfig(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        layers=reader.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context_tokens=context_tokens,
        rope=parse_rope(reader, head_dim, context_tokens),
        intermediate_size=reader.integer("intermediate_size"),
        norm_eps=reader.number("rms_norm_eps"),
        tied=reader.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
    )
    reader.finish()
    return parsed


def weights(config: LlamaConfig) -> WeightMap:
    """Every weight of the model, with biases and a head where the config has them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    ours, theirs = "layers.{layer}", "model.layers.{layer}"

    def projection(name: str, their: str, n: int, k: int, bias: bool) -> list[WeightRow]:
        rows = [WeightRow(f"{ours}.{name}.weight", f"{theirs}.{their}.weight", (n, k))]
        if bias:
            rows.append(WeightRow(f"{ours}.{name}.bias", f"{theirs}.{their}.bias", (n,)))
        return rows

    def layer_norm(name: str, their: str) -> WeightRow:
        return WeightRow(f"{ours}.{name}.weight", f"{theirs}.{their}.weight", (hidden,))

    rows = [
        WeightRow("embed.weight", embedding, (config.vocab_size, hidden)),
        layer_norm("attention_norm", "input_layernorm"),
        *projection("attention.q", "self_attn.q_proj", q, hidden, config.qkv_bias),
        *projection("attention.k", "self_attn.k_proj", kv, hidden, config.qkv_bias),
        *projection("attention.v", "self_attn.v_proj", kv, hidden, config.qkv_bias),
        *projection("attention.o", "self_attn.o_proj", hidden, q, config.o_bias),
        layer_norm("mlp_norm", "post_attention_layernorm"),
        *projection("mlp.gate", "mlp.gate_proj", inner, hidden, config.mlp_bias),
        *projection("mlp.up", "mlp.up_proj", inner, hidden, config.mlp_bias),
        *projection("mlp.down", "mlp.down_proj", hidden, inner, config.mlp_bias),
        WeightRow("norm.weight", "model.norm.weight", (hidden,)),
    ]
    if not config.tied:
        rows.append(WeightRow("head.weight", head, (config.vocab_size, hidden)))
    return WeightMap(
        tuple(rows),
        config.layers,
        ignored=("model.layers.{layer}.self_attn.rotary_emb.inv_freq",),
        copies=((head, embedding),) if config.tied else (),
    )


def forward(build: GraphBuilder, config: LlamaConfig, step: Step) -> tuple[Value, Value]:
    """One step: tokens i32[S] -> (logits f32[L, vocab], kv)."""
    embedding, kv = build.weight("embed.weight"), step.kv
    x = build.node("embed", step.tokens, embedding)
    for layer in range(config.layers):
        with build.scope(f"layers.{layer}"):
            x, kv = block(build, config, step, x, kv, layer)
    x = build.node("select_rows", x, step.logit_rows)
    x = norm(build, "norm", x, config.norm_eps)
    if not config.tied:
        return linear(build, "head", x), kv
    with build.scope("head"):
        return build.node("matmul", x, embedding), kv


def block(
    build: GraphBuilder, config: LlamaConfig, step: Step, x: Value, kv: Value, layer: int
) -> tuple[Value, Value]:
    """Pre-norm attention and gated MLP, each added to the residual x f32[S, hidden]."""
    normed = norm(build, "attention_norm", x, config.norm_eps)
    with build.scope("attention"):
        attended, kv = attention(
            build,
            config,
            step,
            normed,
            kv,
            layer=layer,
            qkv_bias=config.qkv_bias,
            o_bias=config.o_bias,
        )
        x = build.node("add", x, attended)
    normed = norm(build, "mlp_norm", x, config.norm_eps)
    with build.scope("mlp"):
        x = build.node("add", x, gated_mlp(build, normed, bias=config.mlp_bias))
    return x, kv


LLAMA = Family("llama", parse_config, weights, forward)
