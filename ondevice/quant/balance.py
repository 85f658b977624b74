"""Keys with elements of one size, for a cache that keeps a head's key under one scale.

Keys have outlier channels (arXiv 2402.02750). A rotary pair of the keys divided by s, and that of
the queries multiplied by s, leaves every q . k as it is: rotation keeps a pair together, and with s
a power of two no float changes but in its exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from ondevice.quant.layout import Array
from ondevice.quant.stream import Tensor

MOST_POWER = 24  # of two, by which a pair is scaled


@dataclass(frozen=True)
class Heads:
    """The attention of a model whose weights have the names of `models`."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Scaled:
    """A tensor whose rows [N, ...] are multiplied by `factors()` f32[N] as they are read."""

    tensor: Tensor
    factors: Callable[[], Array]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read_rows(self, begin: int, end: int, out: Array | None = None) -> Array:
        rows = self.tensor.read_rows(begin, end, out)
        rows *= self.factors()[begin:end].reshape(-1, *[1] * (rows.ndim - 1))
        return rows


def balanced(tensors: Mapping[str, Tensor], heads: Heads) -> dict[str, Tensor]:
    """The tensors, those of queries and keys scaled so that all pairs of a key are about as large.

    Weights of keys are read when the first scaled tensor is, one head at a time.
    """
    return {**tensors, **dict(_scaled(tensors, heads))}


def _scaled(tensors: Mapping[str, Tensor], heads: Heads) -> Iterator[tuple[str, Tensor]]:
    for layer in range(heads.layers):
        own = f"layers.{layer}.attention"
        keys, queries = _factors(tensors, own, heads)
        for kind in ("weight", "bias"):
            for name, factors in ((f"{own}.k.{kind}", keys), (f"{own}.q.{kind}", queries)):
                if name in tensors:
                    yield name, Scaled(tensors[name], factors)


def _factors(
    tensors: Mapping[str, Tensor], own: str, heads: Heads
) -> tuple[Callable[[], Array], Callable[[], Array]]:
    """Factors of the rows of keys f32[G * D] and of queries f32[H * D], computed once if asked."""

    @cache
    def powers() -> Array:
        norm = tensors[f"{own}_norm.weight"]
        weight, bias = tensors[f"{own}.k.weight"], tensors.get(f"{own}.k.bias")
        inputs = norm.read_rows(0, norm.shape[0])
        return np.stack(
            [
                pair_powers(_row_sizes(weight, bias, inputs, g * heads.head_dim, heads.head_dim))
                for g in range(heads.kv_heads)
            ]
        )

    def keys() -> Array:
        return two_to(-np.tile(powers(), 2))

    def queries() -> Array:
        shared = np.repeat(np.tile(powers(), 2), heads.heads // heads.kv_heads, axis=0)
        return two_to(shared)

    return keys, queries


def _row_sizes(weight: Tensor, bias: Tensor | None, inputs: Array, first: int, count: int) -> Array:
    """Root mean squares of keys' elements f64[count], of inputs that are white but for a factor."""
    rows = weight.read_rows(first, first + count).astype(np.float64) * inputs
    squares = np.square(rows).sum(axis=1)
    if bias is not None:
        squares += np.square(bias.read_rows(first, first + count).astype(np.float64))
    sizes: Array = np.sqrt(squares)
    return sizes


def two_to(powers: Array) -> Array:
    """f32 factors, one for each row."""
    factors: Array = np.ldexp(np.float32(1), powers).reshape(-1)
    return factors


def pair_powers(sizes: Array) -> Array:
    """Powers of two int32[D/2] by which the pairs of a key of D elements exceed their mean."""
    pairs = np.sqrt(np.square(sizes).reshape(2, -1).mean(axis=0))
    logs = np.log2(np.where(pairs > 0, pairs, 1))
    mean = logs[pairs > 0].mean() if (pairs > 0).any() else 0.0
    powers = np.rint(np.where(pairs > 0, logs - mean, 0))
    return np.clip(powers, -MOST_POWER, MOST_POWER).astype(np.int32)
