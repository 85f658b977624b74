"""Rotary pairs of queries and keys are scaled against each other, by powers of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ondevice.quant.balance import Heads, balanced, pair_powers
from ondevice.quant.layout import Array

HEADS = Heads(layers=1, heads=4, kv_heads=2, head_dim=8)
HIDDEN = 24


@dataclass(frozen=True)
class Rows:
    """A tensor in memory."""

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read_rows(self, begin: int, end: int, out: Array | None = None) -> Array:
        return self.values[begin:end].copy()


def tensors(outliers: Array, bias: bool = False) -> dict[str, Array]:
    """A layer whose pairs of keys f64[G, D/2] are so much larger."""
    rng = np.random.default_rng(4)
    values = {
        "layers.0.attention_norm.weight": rng.uniform(0.1, 3, HIDDEN),
        "layers.0.attention.q.weight": rng.standard_normal((4 * 8, HIDDEN)),
        "layers.0.attention.k.weight": rng.standard_normal((2 * 8, HIDDEN)),
        "layers.0.attention.v.weight": rng.standard_normal((2 * 8, HIDDEN)),
    }
    if bias:
        values["layers.0.attention.q.bias"] = rng.standard_normal(4 * 8)
        values["layers.0.attention.k.bias"] = rng.standard_normal(2 * 8)
    values["layers.0.attention.k.weight"] *= np.tile(outliers, 2).reshape(-1, 1)
    return {name: value.astype(np.float32) for name, value in values.items()}


def scaled(values: dict[str, Array]) -> dict[str, Array]:
    made = balanced({name: Rows(value) for name, value in values.items()}, HEADS)
    return {name: tensor.read_rows(0, tensor.shape[0]) for name, tensor in made.items()}


def projected(values: dict[str, Array], which: str, heads: int) -> Array:
    """Queries or keys [heads, D] of an input, in double precision."""
    x = np.random.default_rng(1).standard_normal(HIDDEN) * values["layers.0.attention_norm.weight"]
    rows = values[f"layers.0.attention.{which}.weight"].astype(np.float64) @ x
    rows += values.get(f"layers.0.attention.{which}.bias", 0.0)
    return rows.reshape(heads, 8)


def turned(x: Array, angle: float) -> Array:
    """Each pair (i, i + D/2) rotated."""
    left, right = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def test_scores_stay_and_keys_become_even() -> None:
    outliers = np.array([[1, 1, 300, 1], [1 / 40, 1, 1, 7]])
    for bias in (False, True):
        before = tensors(outliers, bias)
        after = scaled(before)
        scores = []
        for values in (before, after):
            q, k = (turned(projected(values, *of), 0.3) for of in (("q", 4), ("k", 2)))
            scores.append(np.einsum("hd,hd->h", q, np.repeat(k, 2, axis=0)))
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-12)
        rows = after["layers.0.attention.k.weight"] * before["layers.0.attention_norm.weight"]
        if bias:
            rows = np.c_[rows, after["layers.0.attention.k.bias"]]
        pairs = np.linalg.norm(np.linalg.norm(rows, axis=1).reshape(2, 2, 4), axis=1)
        assert (pairs.max(axis=1) / pairs.min(axis=1) <= 2.001).all()


def test_nothing_else_changes() -> None:
    before = tensors(np.ones((2, 4)))
    after = scaled(before)
    for name, value in before.items():
        exponents = np.log2(after[name] / value)
        assert (exponents == np.rint(exponents)).all()
        assert name.split(".")[-2] in "qk" or not exponents.any()


def test_scaling_pairs_beforehand_makes_no_difference() -> None:
    plain = scaled(tensors(np.ones((2, 4))))
    before = tensors(np.ones((2, 4)))
    powers = np.array([[4, -3, 0, 0], [0, 10, -8, -1]])
    powers[0, 2:] = -1, 0  # a head's own mean stays
    powers[1, 3] = -2
    rows = np.ldexp(1.0, np.tile(powers, 2)).reshape(-1, 1).astype(np.float32)
    before["layers.0.attention.k.weight"] *= rows
    queries = np.repeat(rows.reshape(2, 8), 2, axis=0).reshape(-1, 1)
    before["layers.0.attention.q.weight"] /= queries
    for name, value in scaled(before).items():
        np.testing.assert_array_equal(value, plain[name])


def test_parts_of_a_tensor_are_parts_of_the_whole() -> None:
    made = balanced({n: Rows(v) for n, v in tensors(np.full((2, 4), 9.0)).items()}, HEADS)
    keys = made["layers.0.attention.k.weight"]
    parts = [keys.read_rows(begin, begin + 4) for begin in range(0, 16, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), keys.read_rows(0, 16))


def test_pairs_of_zeros_are_left_alone() -> None:
    sizes = np.array([0, 4, 1, 1, 0, 4, 1, 1], np.float64)
    assert pair_powers(sizes).tolist() == [0, 1, -1, -1]
    assert not pair_powers(np.zeros(8)).any()
