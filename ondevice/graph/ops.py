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

import numpy as np

from ondevice.dtypes import f32
from ondevice.errors import GraphError, nearest
from ondevice.graph import rules
from ondevice.graph.attention import (
    attention,
    attention_joined,
    attention_parts,
    infer_attention,
    infer_attention_joined,
    infer_attention_parts,
    infer_kv_write,
    infer_rope,
    kv_write,
    rope,
)
from ondevice.graph.graph import Attr, Attrs, TensorType
from ondevice.graph.kv_pool import Array

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
# Rows and products.


def infer_embed(tokens: TensorType, table: TensorType) -> TensorType:
    (rows,) = rules.indices("tokens", tokens)
    _, features = rules.tensor("table", table, "float", 2)
    return TensorType.of(f32, rows, features)


def embed(tokens: Array, table: Array) -> Array:
    """`table[tokens]`: i32[S], [V, K] -> f32[S, K]."""
    return table[tokens]


def infer_select_rows(x: TensorType, rows: TensorType) -> TensorType:
    _, features = rules.activation("x", x)
    (count,) = rules.indices("rows", rows)
    return TensorType.of(f32, count, features)


def select_rows(x: Array, rows: Array) -> Array:
    """`x[rows]`: f32[S, K], i32[L] -> f32[L, K]."""
    return x[rows]


def infer_matmul(x: TensorType, weight: TensorType) -> TensorType:
    rows, inner = rules.activation("x", replace(x, scheme="") if x.scheme == ACTIVATIONS else x)
    features, weight_inner = rules.tensor("weight", weight, "float", 2)
    rules.equal("inner sizes of matmul", inner, weight_inner)
    return TensorType.of(f32, rows, features)


def matmul(x: Array, weight: Array) -> Array:
    """`y[s, n] = sum_k x[s, k] * weight[n, k]`: f32[S, K], [N, K] -> f32[S, N]."""
    product: Array = x @ weight.T
    return product


def infer_quantize(x: TensorType) -> TensorType:
    rules.activation("x", x)
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
    rules.activation("x", x, len(x.shape))
    rules.equal("operand types", x, y)
    return x


def add(x: Array, y: Array) -> Array:
    """`x + y`, equal shapes."""
    return x + y


def mul(x: Array, y: Array) -> Array:
    """`x * y`, equal shapes."""
    return x * y


def infer_silu(x: TensorType) -> TensorType:
    rules.activation("x", x, len(x.shape))
    return x


def silu(x: Array) -> Array:
    """`x * sigmoid(x)` (arXiv 1702.03118)."""
    with np.errstate(over="ignore"):  # exp(-x) = inf for very negative x gives the right limit, -0
        y: Array = x / (1 + np.exp(-x))
    return y


def infer_add_bias(x: TensorType, bias: TensorType) -> TensorType:
    _, features = rules.activation("x", x)
    rules.equal("length of the bias", rules.tensor("bias", bias, "float", 1), (features,))
    return x


def add_bias(x: Array, bias: Array) -> Array:
    """`y[s, n] = x[s, n] + bias[n]`: f32[S, N], [N] -> f32[S, N]."""
    return x + bias


def infer_normalize(x: TensorType, scale: TensorType, weight: TensorType) -> TensorType:
    rows, features = rules.activation("x", x)
    rules.equal("length of the scale", rules.activation("scale", scale, 1), (rows,))
    rules.equal("length of the weight", rules.tensor("weight", weight, "float", 1), (features,))
    return x


def normalize(x: Array, scale: Array, weight: Array) -> Array:
    """`y[s, k] = (x[s, k] * scale[s]) * weight[k]`: f32[S, K], f32[S], [K] -> f32[S, K]."""
    return (x * scale[:, None]) * weight


# ---------------------------------------------------------------------------------------------
# Root mean square norm (arXiv 1910.07467), whole and as its reduction.


def infer_rms_scale(x: TensorType, *, eps: float) -> TensorType:
    rows, _ = rules.activation("x", x)
    return TensorType.of(f32, rows)


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
