"""OPS: every op a graph may hold, one frozen row each.

An op is two Python functions with one signature: the first takes the types of its inputs and
returns the type of its output, the second takes NumPy arrays and returns the array. Positional
parameters are inputs, keyword-only parameters are attributes. The second function is the meaning
of the op: whatever a pass or a kernel does is right when it agrees with it.

Shape letters: S query tokens, L rows whose logits are wanted, B rows of the block table, W its
width, P blocks of the KV pool, H heads, G key/value heads, D head_dim, K and N features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.bundle.program import KV_BLOCK_TOKENS, KV_SPAN_TOKENS
from ondevice.dims import Extent
from ondevice.dtypes import f32, i32
from ondevice.errors import GraphError, nearest
from ondevice.graph.graph import Attr, Attrs, TensorType
from ondevice.graph.kv_pool import kv_sizes, read_pool, write_token

Array = npt.NDArray[Any]

# The scheme of quantized activations: groups of 64 int8 codes, each with its f32 scale.
ACTIVATIONS = "a8_g64"
ACTIVATION_GROUP = 64

ATTR_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class OpDef:
    """One op. `infer` and `reference` have the same signature, over types and over arrays.

    `elementwise` ops compute each element of their result from the same element of one input (and
    from broadcast rows or columns of the others), so they can be fused into an anchor. `pairwise`
    ops need the element half a head away too. `by_row` says of the others that each row of the
    result comes from the same row of the inputs that have as many. `state` is the name of the input
    that the op consumes and returns changed ("" for pure ops).
    """

    name: str
    infer: Callable[..., TensorType]
    reference: Callable[..., Array]
    elementwise: bool = False
    pairwise: bool = False
    by_row: bool = False
    state: str = ""

    @property
    def rowwise(self) -> bool:
        """Whether a part of the rows can be computed by itself."""
        return self.elementwise or self.pairwise or self.by_row

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        parameters = inspect.signature(self.infer).parameters.values()
        return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)

    @property
    def fed(self) -> int:
        """The input that a prologue prepares: the first that is not a state."""
        return 1 if self.inputs[:1] == (self.state,) else 0

    @cached_property
    def attrs(self) -> dict[str, type]:
        """Names and types of the attributes, in order."""
        parameters = inspect.signature(self.infer).parameters.values()
        return {p.name: ATTR_TYPES[p.annotation] for p in parameters if p.kind is p.KEYWORD_ONLY}

    def infer_type(self, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """The type of the result. Raises GraphError where inputs or attributes do not fit."""
        if len(inputs) != len(self.inputs):
            wanted = ", ".join(self.inputs)
            raise GraphError(f"{self.name} takes ({wanted}), not {len(inputs)} inputs")
        self._check_attrs(attrs)
        return self.infer(*inputs, **dict(attrs))

    def _check_attrs(self, attrs: Attrs) -> None:
        given: Mapping[str, Attr] = dict(attrs)
        for name, value in attrs:
            if name not in self.attrs:
                hint = nearest(name, self.attrs)
                raise GraphError(f"{self.name} has no attribute {name!r}{hint}")
            # `type(...) is` on purpose: True is an int to isinstance, and 1 is not a float.
            if type(value) is not self.attrs[name]:
                wanted = self.attrs[name].__name__
                raise GraphError(f"{self.name}: attribute {name}={value!r} must be {wanted}")
        missing = [name for name in self.attrs if name not in given]
        if missing:
            raise GraphError(f"{self.name} lacks the attribute {', '.join(missing)}")
        if len(given) != len(attrs):
            raise GraphError(f"{self.name} has an attribute given twice")


# ---------------------------------------------------------------------------------------------
# What type rules check.


def _tensor(name: str, type_: TensorType, kind: str, rank: int) -> tuple[Extent, ...]:
    """The shape of `type_`, which must have this kind of elements and this rank."""
    if type_.dtype.kind != kind or len(type_.shape) != rank:
        raise GraphError(f"{name} must be {kind} of rank {rank}, not {type_}")
    return type_.shape


def _activation(name: str, type_: TensorType, rank: int = 2) -> tuple[Extent, ...]:
    """The shape of a value computed in the step: plain float32."""
    if type_.dtype != f32 or type_.scheme or len(type_.shape) != rank:
        raise GraphError(f"{name} must be plain f32 of rank {rank}, not {type_}")
    return type_.shape


def _indices(name: str, type_: TensorType, rank: int = 1) -> tuple[Extent, ...]:
    if type_.dtype != i32 or len(type_.shape) != rank:
        raise GraphError(f"{name} must be i32 of rank {rank}, not {type_}")
    return type_.shape


def _equal(what: str, left: object, right: object) -> None:
    if left != right:
        raise GraphError(f"{what}: {left} is not {right}")


def _f32(*shape: int | str | Extent) -> TensorType:
    return TensorType.of(f32, *shape)


# ---------------------------------------------------------------------------------------------
# Rows and products.


def infer_embed(tokens: TensorType, table: TensorType) -> TensorType:
    (rows,) = _indices("tokens", tokens)
    _, features = _tensor("table", table, "float", 2)
    return _f32(rows, features)


def embed(tokens: Array, table: Array) -> Array:
    """`table[tokens]`: i32[S], [V, K] -> f32[S, K]."""
    return table[tokens]


def infer_select_rows(x: TensorType, rows: TensorType) -> TensorType:
    _, features = _activation("x", x)
    (count,) = _indices("rows", rows)
    return _f32(count, features)


def select_rows(x: Array, rows: Array) -> Array:
    """`x[rows]`: f32[S, K], i32[L] -> f32[L, K]."""
    return x[rows]


def infer_matmul(x: TensorType, weight: TensorType) -> TensorType:
    rows, inner = _activation("x", replace(x, scheme="") if x.scheme == ACTIVATIONS else x)
    features, weight_inner = _tensor("weight", weight, "float", 2)
    _equal("inner sizes of matmul", inner, weight_inner)
    return _f32(rows, features)


def matmul(x: Array, weight: Array) -> Array:
    """`y[s, n] = sum_k x[s, k] * weight[n, k]`: f32[S, K], [N, K] -> f32[S, N]."""
    product: Array = x @ weight.T
    return product


def infer_quantize(x: TensorType) -> TensorType:
    _activation("x", x)
    return replace(x, scheme=ACTIVATIONS)


def quantize(x: Array) -> Array:
    """The values that int8 codes in groups of 64 keep of x: f32[S, K] -> [S, K]."""
    rows, columns = x.shape
    padded = np.zeros((rows, -(-columns // ACTIVATION_GROUP) * ACTIVATION_GROUP), np.float32)
    padded[:, :columns] = x
    groups = padded.reshape(rows, -1, ACTIVATION_GROUP)
    top = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 1e-30)
    values: Array = np.rint(groups * inverse) * (top / np.float32(127))
    return values.reshape(rows, -1)[:, :columns]


# ---------------------------------------------------------------------------------------------
# Elementwise ops.


def infer_same(x: TensorType, y: TensorType) -> TensorType:
    _activation("x", x, len(x.shape))
    _equal("operand types", x, y)
    return x


def add(x: Array, y: Array) -> Array:
    """`x + y`, equal shapes."""
    return x + y


def mul(x: Array, y: Array) -> Array:
    """`x * y`, equal shapes."""
    return x * y


def infer_silu(x: TensorType) -> TensorType:
    _activation("x", x, len(x.shape))
    return x


def silu(x: Array) -> Array:
    """`x * sigmoid(x)` (arXiv 1702.03118)."""
    with np.errstate(over="ignore"):  # exp(-x) = inf for very negative x gives the right limit, -0
        y: Array = x / (1 + np.exp(-x))
    return y


def infer_add_bias(x: TensorType, bias: TensorType) -> TensorType:
    _, features = _activation("x", x)
    _equal("length of the bias", _tensor("bias", bias, "float", 1), (features,))
    return x


def add_bias(x: Array, bias: Array) -> Array:
    """`y[s, n] = x[s, n] + bias[n]`: f32[S, N], [N] -> f32[S, N]."""
    return x + bias


def infer_normalize(x: TensorType, scale: TensorType, weight: TensorType) -> TensorType:
    rows, features = _activation("x", x)
    _equal("length of the scale", _activation("scale", scale, 1), (rows,))
    _equal("length of the weight", _tensor("weight", weight, "float", 1), (features,))
    return x


def normalize(x: Array, scale: Array, weight: Array) -> Array:
    """`y[s, k] = (x[s, k] * scale[s]) * weight[k]`: f32[S, K], f32[S], [K] -> f32[S, K]."""
    return (x * scale[:, None]) * weight


# ---------------------------------------------------------------------------------------------
# Root mean square norm (arXiv 1910.07467), whole and as its reduction.


def infer_rms_scale(x: TensorType, *, eps: float) -> TensorType:
    rows, _ = _activation("x", x)
    return _f32(rows)


def rms_scale(x: Array, *, eps: float) -> Array:
    """`1 / sqrt(mean_k(x[s, k]^2) + eps)`: f32[S, K] -> f32[S]."""
    mean = np.mean(x * x, axis=-1, dtype=np.float32)
    scale: Array = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return scale


def infer_rmsnorm(x: TensorType, weight: TensorType, *, eps: float) -> TensorType:
    return infer_normalize(x, infer_rms_scale(x, eps=eps), weight)


def rmsnorm(x: Array, weight: Array, *, eps: float) -> Array:
    """`normalize(x, rms_scale(x), weight)`: f32[S, K], [K] -> f32[S, K]."""
    return normalize(x, rms_scale(x, eps=eps), weight)


# ---------------------------------------------------------------------------------------------
# Attention over a paged cache.


def infer_rope(x: TensorType, rope: TensorType, *, heads: int, head_dim: int) -> TensorType:
    rows, features = _activation("x", x)
    _equal("features of x", features, Extent.of(heads * head_dim))
    _equal("shape of the rope table", _activation("rope", rope), (rows, Extent.of(head_dim)))
    if head_dim % 2:
        raise GraphError(f"rope needs an even head_dim, not {head_dim}")
    return x


def rope(x: Array, rope: Array, *, heads: int, head_dim: int) -> Array:
    """Rotate each head's pairs (i, i + D/2): f32[S, H*D], f32[S, D] -> f32[S, H*D].

    `rope[s]` is cos of D/2 angles, then sin of them. The pairing is Hugging Face's "half-split"
    form of rotary embeddings (arXiv 2104.09864).
    """
    x = x.reshape(len(x), heads, head_dim)
    left, right = np.split(x, 2, axis=-1)
    cos, sin = np.split(rope[:, None, :], 2, axis=-1)
    rotated = np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.reshape(len(x), heads * head_dim)


def _addressing(
    rows: Extent, positions: TensorType, sequence: TensorType, block_table: TensorType
) -> None:
    _equal("length of positions", _indices("positions", positions), (rows,))
    _equal("length of sequence", _indices("sequence", sequence), (rows,))
    _indices("block_table", block_table, 2)


def infer_kv_write(
    kv: TensorType,
    k: TensorType,
    v: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    *,
    layer: int,
) -> TensorType:
    kv_heads, head_dim = kv_sizes(kv, layer)
    rows, features = _activation("k", k)
    _equal("types of k and v", k, v)
    _equal("features of k", features, Extent.of(kv_heads * head_dim))
    _addressing(rows, positions, sequence, block_table)
    return kv


def kv_write(
    kv: Array,
    k: Array,
    v: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    *,
    layer: int,
) -> Array:
    """Store each token's key and value where the block table puts its position.

    kv as `kv_pool` has it, k and v f32[S, G*D], positions and sequence i32[S],
    block_table i32[B, W] -> kv. Token t of a block holds its key's element d at d*32 + t and its
    value's element d at t*D + d.
    """
    kv = kv.copy()
    heads = kv.shape[3]
    for s, position in enumerate(positions):
        block = block_table[sequence[s], position // KV_BLOCK_TOKENS]
        token = position % KV_BLOCK_TOKENS
        write_token(kv, layer, block, token, k[s].reshape(heads, -1), v[s].reshape(heads, -1))
    return kv


def infer_attention(
    q: TensorType,
    kv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> TensorType:
    rows, features = _activation("q", q)
    _equal("features of q", features, Extent.of(heads * head_dim))
    _equal("(kv_heads, head_dim) of kv", kv_sizes(kv, layer), (kv_heads, head_dim))
    if heads % kv_heads:
        raise GraphError(f"{heads} heads cannot share {kv_heads} kv_heads evenly")
    _addressing(rows, positions, sequence, block_table)
    return q


def attention(
    q: Array,
    kv: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> Array:
    """Causal grouped-query attention (arXiv 2305.13245) of each token to its own conversation.

    The token at position p attends to cached positions 0..p through its row of the block table.
    q f32[S, H*D], kv as `kv_pool` has it, positions and sequence i32[S],
    block_table i32[B, W] -> f32[S, H*D].
    """
    q = q.reshape(len(q), heads, head_dim)
    out = np.empty_like(q)
    keys, values = read_pool(kv, layer)
    for s, position in enumerate(positions):
        cached = np.arange(position + 1)
        blocks = block_table[sequence[s], cached // KV_BLOCK_TOKENS]
        tokens = cached % KV_BLOCK_TOKENS
        for head in range(heads):
            g = head // (heads // kv_heads)
            scores = (keys[blocks, g, :, tokens] @ q[s, head]) * np.float32(scale)
            weights = np.exp(scores - scores.max())
            out[s, head] = (weights / weights.sum()) @ values[blocks, g, tokens]
    return out.reshape(len(q), heads * head_dim)


def infer_attention_parts(
    q: TensorType,
    kv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> TensorType:
    attrs = {"layer": layer, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    infer_attention(q, kv, positions, sequence, block_table, **attrs, scale=scale)
    width = block_table.shape[1].static or 0
    spans = -(-width * KV_BLOCK_TOKENS // KV_SPAN_TOKENS)
    return _f32(q.shape[0], spans * heads * (head_dim + 2))


def attention_parts(
    q: Array,
    kv: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> Array:
    """Attention to each span of 256 positions on its own: f32[S, spans * H * (D + 2)].

    The D values of a span's part are not divided yet; the largest score and the sum of the weights
    follow them (arXiv 2205.14135). Parts of spans that a token does not see are NaN.
    """
    q = q.reshape(len(q), heads, head_dim)
    spans = -(-block_table.shape[1] * KV_BLOCK_TOKENS // KV_SPAN_TOKENS)
    parts = np.full((len(q), spans, heads, head_dim + 2), np.nan, np.float32)
    keys, values = read_pool(kv, layer)
    for s, position in enumerate(positions):
        for span in range(position // KV_SPAN_TOKENS + 1):
            cached = np.arange(span * KV_SPAN_TOKENS, position + 1)[:KV_SPAN_TOKENS]
            blocks = block_table[sequence[s], cached // KV_BLOCK_TOKENS]
            tokens = cached % KV_BLOCK_TOKENS
            for head in range(heads):
                g = head // (heads // kv_heads)
                scores = (keys[blocks, g, :, tokens] @ q[s, head]) * np.float32(scale)
                weights = np.exp(scores - scores.max())
                parts[s, span, head, :head_dim] = weights @ values[blocks, g, tokens]
                parts[s, span, head, head_dim:] = scores.max(), weights.sum()
    return parts.reshape(len(q), -1)


def infer_attention_joined(
    q: TensorType,
    kv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    block_table: TensorType,
    parts: TensorType,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> TensorType:
    attrs = {"layer": layer, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    whole = infer_attention(q, kv, positions, sequence, block_table, **attrs, scale=scale)
    wanted = infer_attention_parts(q, kv, positions, sequence, block_table, **attrs, scale=scale)
    _equal("type of the parts", parts, wanted)
    return whole


def attention_joined(
    q: Array,
    kv: Array,
    positions: Array,
    sequence: Array,
    block_table: Array,
    parts: Array,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
) -> Array:
    """`attention`, whose kernel may take it from `attention_parts` of the same inputs."""
    rows = len(q)
    parts = parts.reshape(rows, -1, heads, head_dim + 2)
    out = np.empty((rows, heads, head_dim), np.float32)
    for s, position in enumerate(positions):
        seen = parts[s, : position // KV_SPAN_TOKENS + 1]
        weights = np.exp(seen[..., head_dim] - seen[..., head_dim].max(axis=0))
        values = (seen[..., :head_dim] * weights[..., None]).sum(axis=0)
        out[s] = values / (seen[..., head_dim + 1] * weights).sum(axis=0)[:, None]
    return out.reshape(rows, heads * head_dim)


OPS: dict[str, OpDef] = {
    op.name: op
    for op in (
        OpDef("embed", infer_embed, embed),
        OpDef("select_rows", infer_select_rows, select_rows),
        OpDef("matmul", infer_matmul, matmul, by_row=True),
        OpDef("quantize", infer_quantize, quantize, by_row=True),
        OpDef("rmsnorm", infer_rmsnorm, rmsnorm, by_row=True),
        OpDef("rms_scale", infer_rms_scale, rms_scale, by_row=True),
        OpDef("normalize", infer_normalize, normalize, elementwise=True),
        OpDef("add", infer_same, add, elementwise=True),
        OpDef("mul", infer_same, mul, elementwise=True),
        OpDef("silu", infer_silu, silu, elementwise=True),
        OpDef("add_bias", infer_add_bias, add_bias, elementwise=True),
        OpDef("rope", infer_rope, rope, pairwise=True),
        OpDef("kv_write", infer_kv_write, kv_write, state="kv"),
        OpDef("attention", infer_attention, attention),
        OpDef("attention_parts", infer_attention_parts, attention_parts),
        OpDef("attention_joined", infer_attention_joined, attention_joined),
    )
}


def op_named(name: str) -> OpDef:
    """The row of OPS. Raises GraphError with the nearest name."""
    if name not in OPS:
        raise GraphError(f"unknown op {name!r}{nearest(name, OPS)}")
    return OPS[name]
