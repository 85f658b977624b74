"""od_sample and its filters, by themselves, against references in NumPy."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ondevice.runtime.header import CLogitBias, CSampling

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]


class Said(ctypes.Structure):
    _fields_ = [("tokens", c_void_p), ("count", c_int32), ("generated", c_int32)]


class Candidates(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("count", c_int32),
        ("tokens", c_void_p),
        ("weights", c_void_p),
        ("keys", c_void_p),
    ]


@pytest.fixture(scope="session")
def library(internals: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(internals))
    library.od_uniform.restype = c_double
    library.od_uniform.argtypes = [c_uint64, c_uint64]
    library.od_sample_bytes.restype = ctypes.c_size_t
    library.od_sample_bytes.argtypes = [c_int32]
    library.od_sample.argtypes = [c_void_p, c_int32, c_void_p, c_void_p, c_void_p]
    library.od_logprobs.argtypes = [c_void_p, c_int32, c_int32, c_int32, c_void_p, c_void_p]
    library.od_take_top_k.argtypes = [c_void_p, c_int32, c_int32]
    for name in ("od_keep_top_p", "od_keep_min_p", "od_keep_typical_p"):
        getattr(library, name).argtypes = [c_void_p, c_double]
    return library


def sample(
    library: ctypes.CDLL,
    logits: Any,
    said: list[int] | None = None,
    generated: int = 0,
    **fields: Any,
) -> int:
    values = np.array(logits, np.float32)
    before = values.copy()
    work = np.empty(library.od_sample_bytes(len(values)) // 8)
    tokens = np.array(said or [], np.int32)
    bias = fields.pop("logit_bias", {})
    defaults = {"top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
    sampling = CSampling(
        **(defaults | fields),
        logit_bias=(CLogitBias * len(bias))(*(CLogitBias(*b) for b in bias.items())),
        logit_bias_count=len(bias),
    )
    history = Said(tokens.ctypes.data, len(tokens), generated)
    token: int = library.od_sample(
        values.ctypes.data, len(values), byref(sampling), byref(history), work.ctypes.data
    )
    np.testing.assert_array_equal(values, before)  # logprobs are taken from them afterwards
    return token


# ---- the references: each sorts everything ----


def softmax(logits: Logits, temperature: float = 1.0) -> Floats:
    scores = logits.astype(np.float64) / np.float64(np.float32(temperature))
    weights: Floats = np.exp(scores - scores.max())
    return weights / weights.sum()


def first_in_order(order: NDArray[np.int64], p: Floats, reach: float) -> set[int]:
    """The fewest of an order whose probabilities reach a sum."""
    total = np.cumsum(p[order])
    return set(order[: int(np.argmax(total >= reach * total[-1] * (1 - 1e-15))) + 1].tolist())


def top_k(logits: Logits, p: Floats, k: float) -> set[int]:
    return set(np.argsort(-logits, kind="stable")[: int(k)].tolist())


def top_p(logits: Logits, p: Floats, reach: float) -> set[int]:
    return first_in_order(np.argsort(-logits, kind="stable"), p, reach)


def min_p(logits: Logits, p: Floats, least: float) -> set[int]:
    return set(np.flatnonzero(p >= least * p.max()).tolist())


def typical_p(logits: Logits, p: Floats, reach: float) -> set[int]:
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(p)
        entropy = np.nansum(p * information)
    return first_in_order(np.argsort(np.abs(information - entropy), kind="stable"), p, reach)


def adjusted(logits: Logits, said: list[int], generated: int, fields: dict[str, Any]) -> Logits:
    out = logits.copy()
    for token, bias in fields.get("logit_bias", {}).items():
        out[token] += np.float32(bias)
    window = fields.get("penalty_tokens", 0) or len(said)
    penalty = np.float32(fields.get("repetition_penalty", 1.0))
    for token in set(said[-window:]):
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    answer = said[len(said) - generated :][-window:]
    presence = np.float64(np.float32(fields.get("presence_penalty", 0.0)))
    frequency = np.float64(np.float32(fields.get("frequency_penalty", 0.0)))
    for token in set(answer):
        out[token] = out[token] - (presence + frequency * answer.count(token))
    return out


FILTERS = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}


def probabilities(
    logits: Logits, said: list[int], generated: int, fields: dict[str, Any]
) -> Floats:
    """What od_sampling makes of logits, step by step as its comment says."""
    logits = adjusted(logits, said, generated, fields)
    p = softmax(logits, fields["temperature"])
    for name, kept_by in FILTERS.items():
        if name in fields:
            kept = kept_by(np.where(p > 0, logits, -np.inf), p, float(np.float32(fields[name])))
            p = np.where(np.isin(np.arange(len(p)), list(kept)), p, 0.0)
            p = p / p.sum()
    return p


# ---- greedy ----


def test_greedy_takes_the_lowest_of_equals(library: ctypes.CDLL) -> None:
    assert sample(library, [1, 3, 3, 2]) == 1
    assert sample(library, [-5, -5]) == 0
    assert sample(library, [-np.inf, -2, -np.inf]) == 1
    assert sample(library, [-0.0, 0.0]) == 0


@pytest.mark.parametrize("size", [1, 7, 1024, 1025, 5000])
def test_greedy_is_argmax(size: int, library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(size)
    for at in {0, size // 2, size - 1, *rng.integers(0, size, 5).tolist()}:
        logits = np.round(rng.normal(size=size), 1).astype(np.float32)
        logits[at] = logits.max()
        assert sample(library, logits) == int(np.argmax(logits))
        logits[at] = np.nan
        assert sample(library, logits) == -1


@pytest.mark.parametrize("logits", [[np.nan], [1, np.nan], [np.inf, 1], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_numbers(logits: list[float], temperature: float, library: ctypes.CDLL) -> None:
    assert sample(library, logits, temperature=temperature) == -1


# ---- filters: exactly the candidates of the references ----


@dataclass(frozen=True)
class Row:
    logits: Logits
    temperature: float


def rows() -> dict[str, Row]:
    rng = np.random.default_rng(3)
    peaked = rng.normal(size=4000).astype(np.float32)
    peaked[17] = 25.0
    ties = np.round(rng.normal(size=3000) * 4).astype(np.float32)
    holes = rng.normal(size=500).astype(np.float32)
    holes[::3] = -np.inf
    model = (rng.normal(size=50000) * 2.5).astype(np.float32)
    model[rng.integers(0, 50000, 60)] += np.linspace(3, 14, 60).astype(np.float32)
    return {
        "normal": Row((rng.normal(size=2000) * 3).astype(np.float32), 1.0),
        "flat": Row(np.zeros(999, np.float32), 1.0),
        "eight": Row(np.zeros(8, np.float32), 1.0),  # sums that are exact
        "one": Row(np.array([0.5], np.float32), 1.0),
        "peaked": Row(peaked, 0.7),
        "ties": Row(ties, 1.3),
        "holes": Row(holes, 1.0),
        "model": Row(model, 1.0),
        "hot": Row(model, 5.0),
        "cold": Row(model, 0.05),
    }


ROWS = rows()


def filtered(library: ctypes.CDLL, row: Row, name: str, value: float) -> tuple[set[int], Floats]:
    """The tokens and weights that a filter leaves; it must keep the order of tokens."""
    n = len(row.logits)
    tokens, keys = np.arange(n, dtype=np.int32), np.empty(n, np.uint32)
    weights = softmax(row.logits, row.temperature)
    weights /= weights.max()
    row_of = Candidates(
        *(row.logits.ctypes.data, n, tokens.ctypes.data, weights.ctypes.data, keys.ctypes.data)
    )
    if name == "top_k":
        library.od_take_top_k(byref(row_of), n, int(value))
    else:
        getattr(library, f"od_keep_{name}")(byref(row_of), value)
    kept = tokens[: row_of.count]
    assert np.all(np.diff(kept) > 0)
    return set(kept.tolist()), weights[: row_of.count]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("top_k", [0, 1, 2, 40, 500, 10**6]),
        ("top_p", [1e-45, 0.1, 0.5, 0.9, 0.99, 0.9999]),
        ("min_p", [1e-9, 0.01, 0.2, 1.0]),
        ("typical_p", [1e-45, 0.2, 0.5, 0.9, 0.995]),
    ],
)
def test_filter(row: str, name: str, values: list[float], library: ctypes.CDLL) -> None:
    given = ROWS[row]
    p = softmax(given.logits, given.temperature)
    for value in values:
        kept, weights = filtered(library, given, name, value)
        everything = name == "top_k" and value == 0
        expected = FILTERS[name](given.logits, p, value)
        assert kept == (set(range(len(p))) if everything else expected), value
        if name != "top_k":
            np.testing.assert_array_equal(weights, (p / p.max())[sorted(kept)])


# ---- the whole: the token that the cumulated probabilities say ----

CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "typical_p": 0.6},
    {"temperature": 0.9, "top_k": 60, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "repetition_penalty": 0.5, "penalty_tokens": 12},
    {"temperature": 1.0, "presence_penalty": 1.5, "frequency_penalty": 0.75},
    {"temperature": 1.0, "frequency_penalty": -0.5, "penalty_tokens": 9},
    {"temperature": 1.0, "logit_bias": {3: 4.0, 150: -100.0, 7: -1.5}},
    {
        "temperature": 1.2,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "penalty_tokens": 30,
        "logit_bias": {1: 2.0, 5: 1.0},
        "top_k": 80,
        "top_p": 0.9,
    },
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_draws(fields: dict[str, Any], library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(8)
    logits = (rng.normal(size=200) * 3).astype(np.float32)
    said = rng.integers(0, 20, 40).tolist() + rng.integers(0, 200, 20).tolist()
    seen = set()
    for seed in range(200):
        generated = int(rng.integers(0, 50))
        p = probabilities(logits, said, generated, fields)
        u = library.od_uniform(seed, generated)
        cumulated = np.cumsum(p)
        expected = int(np.searchsorted(cumulated, u, side="right"))
        token = sample(library, logits, said, generated, seed=seed, **fields)
        near = np.abs(cumulated - u).min() < 1e-12
        assert near or token == expected
        assert p[token] > 0
        seen.add(token)
    assert len(seen) > 3


@pytest.mark.parametrize("size", [1, 1000, 1024, 1025, 2049, 40000])
def test_draws_over_blocks(size: int, library: ctypes.CDLL) -> None:
    logits = np.random.default_rng(size).normal(size=size).astype(np.float32)
    cumulated = np.cumsum(softmax(logits))
    for seed in range(200):
        u = library.od_uniform(seed, 0)
        expected = min(int(np.searchsorted(cumulated, u, side="right")), size - 1)
        assert sample(library, logits, temperature=1.0, seed=seed) == expected


def test_greedy_with_penalties(library: ctypes.CDLL) -> None:
    logits = [1.0, 3.0, 2.9, -1.0]
    assert sample(library, logits, [1], repetition_penalty=1.2) == 2
    assert sample(library, logits, [1, 2], 2, presence_penalty=2.5) == 0
    assert sample(library, logits, [1, 2, 2], 3, frequency_penalty=0.5) == 1
    assert sample(library, logits, [1, 1, 2], 3, frequency_penalty=0.5) == 2
    assert sample(library, logits, [1, 1, 2], 1, frequency_penalty=0.5) == 1  # of the prompt
    assert sample(library, logits, [1, 2], 2, presence_penalty=2.5, penalty_tokens=1) == 1
    assert sample(library, logits, logit_bias={3: 4.5}) == 3
    assert sample(library, [-1.0, -1.1], [0], repetition_penalty=1.2) == 1  # negative: multiplied


def test_banned_tokens_are_never_drawn(library: ctypes.CDLL) -> None:
    logits = np.zeros(2000, np.float32)
    logits[1:] = -np.inf
    assert {sample(library, logits, temperature=5.0, seed=s) for s in range(50)} == {0}
    logits = np.full(1500, -np.inf, np.float32)
    logits[[3, 1400]] = 1.0
    assert {sample(library, logits, temperature=1.0, seed=s) for s in range(50)} == {3, 1400}


def test_very_low_temperature_is_greedy(library: ctypes.CDLL) -> None:
    for temperature in (1e-6, 1e-40):
        drawn = {sample(library, [1, 1.001, 0], temperature=temperature, seed=s) for s in range(50)}
        assert drawn == {1}


# ---- logprobs ----


class Logprob(ctypes.Structure):
    _fields_ = [("token", c_int32), ("logprob", ctypes.c_float)]


@pytest.mark.parametrize("row", ["normal", "ties", "holes", "model", "peaked", "one"])
def test_logprobs(row: str, library: ctypes.CDLL) -> None:
    logits = ROWS[row].logits
    top_count = min(20, len(logits))
    out = (Logprob * 21)()
    work = np.empty(len(logits))
    chosen = len(logits) // 2
    library.od_logprobs(
        *(logits.ctypes.data, len(logits), chosen, top_count, byref(out), work.ctypes.data)
    )
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    order = np.argsort(-logits, kind="stable")[:top_count]
    assert out[0].token == chosen
    assert [entry.token for entry in out[1 : 1 + top_count]] == order.tolist()
    ours = [entry.logprob for entry in out[: 1 + top_count]]
    np.testing.assert_allclose(ours, expected[[chosen, *order]].astype(np.float32), rtol=2e-7)
