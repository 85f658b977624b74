"""Building blocks that families share. Each works in the builder's current scope."""

from __future__ import annotations

from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import Value
from ondevice.models.family import ModelConfig, Step


def norm(build: GraphBuilder, name: str, x: Value, eps: float) -> Value:
    """RMSNorm with the weight `name.weight`."""
    with build.scope(name):
        return build.node("rmsnorm", x, build.weight("weight"), eps=eps)


def linear(build: GraphBuilder, name: str, x: Value, *, bias: bool = False) -> Value:
    """`x @ name.weight.T (+ name.bias)`: f32[S, K] -> f32[S, N]."""
    with build.scope(name):
        y = build.node("matmul", x, build.weight("weight"))
        return build.node("add_bias", y, build.weight("bias")) if bias else y


def attention(
    build: GraphBuilder,
    config: ModelConfig,
    step: Step,
    x: Value,
    kv: Value,
    *,
    layer: int,
    qkv_bias: bool = False,
    o_bias: bool = False,
) -> tuple[Value, Value]:
    """Rotary grouped-query attention over the paged cache: f32[S, K] -> (f32[S, K], kv)."""
    heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
    addressing = step.positions, step.sequence, step.block_table
    q = linear(build, "q", x, bias=qkv_bias)
    k = linear(build, "k", x, bias=qkv_bias)
    v = linear(build, "v", x, bias=qkv_bias)
    q = build.node("rope", q, step.rope, name="q.rope", heads=heads, head_dim=head_dim)
    k = build.node("rope", k, step.rope, name="k.rope", heads=kv_heads, head_dim=head_dim)
    kv = build.node("kv_write", kv, k, v, *addressing, layer=layer)
    attended = build.node(
        "attention",
        q,
        kv,
        *addressing,
        layer=layer,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
    )
    return linear(build, "o", attended, bias=o_bias), kv


def gated_mlp(build: GraphBuilder, x: Value, *, bias: bool = False) -> Value:
    """SwiGLU (arXiv 2002.05202): `down(silu(gate(x)) * up(x))`."""
    gate = linear(build, "gate", x, bias=bias)
    up = linear(build, "up", x, bias=bias)
    gated = build.node("mul", build.node("silu", gate), up)
    return linear(build, "down", gated, bias=bias)
