"""Inverse frequencies of rotary embeddings, as transformers computes them in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.bundle.program import Rope
from ondevice.errors import CheckpointError, nearest
from ondevice.models.config import ConfigReader

Frequencies = npt.NDArray[np.float32]
MOST_HEAD_DIM = 4096


def parse_rope(config: ConfigReader, head_dim: int, context_tokens: int) -> Rope:
    """Read `rope_parameters` (transformers 5), or the older `rope_theta` and `rope_scaling`.

    Raises CheckpointError.
    """
    if head_dim > MOST_HEAD_DIM:
        raise CheckpointError(f"config.json: heads of {head_dim} are larger than {MOST_HEAD_DIM}")
    with np.errstate(all="ignore"):  # as_rope looks at what comes out
        return _parse_rope(config, head_dim, context_tokens)


def _parse_rope(config: ConfigReader, head_dim: int, context_tokens: int) -> Rope:
    theta = config.number("rope_theta", 10000.0)
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    if old and new:
        raise CheckpointError("config.json: rope_scaling and rope_parameters exclude each other")
    rope = new or old
    if rope is None:
        return as_rope(default_frequencies(theta, head_dim))
    theta = rope.number("rope_theta", theta)
    rope.require("partial_rotary_factor", 1.0, 1, None)
    kind = rope.text("rope_type", rope.text("type", "default"))
    frequencies = default_frequencies(theta, head_dim)
    if kind == "linear":
        frequencies = frequencies / np.float32(rope.number("factor"))
    elif kind == "llama3":
        frequencies = llama3_frequencies(
            frequencies,
            factor=rope.number("factor"),
            low=rope.number("low_freq_factor"),
            high=rope.number("high_freq_factor"),
            original_tokens=rope.integer("original_max_position_embeddings", context_tokens),
        )
    elif kind != "default":
        known = nearest(kind, ("default", "linear", "llama3"))
        raise CheckpointError(f"config.json: rope_type {kind!r} is not supported{known}")
    rope.ignore("original_max_position_embeddings")
    rope.finish()
    return as_rope(frequencies)


def as_rope(frequencies: Frequencies) -> Rope:
    """The Program's row: Python floats that are exactly the float32 values.

    Raises CheckpointError where the numbers that they were made of are too large or too small.
    """
    if not np.isfinite(frequencies).all():
        raise CheckpointError("config.json: the numbers for rope make no finite frequencies")
    return Rope(tuple(float(f) for f in frequencies))


def default_frequencies(theta: float, rope_dim: int) -> Frequencies:
    """`theta ** (-2i / rope_dim)` for i < rope_dim / 2 (arXiv 2104.09864).

    The power is rounded to float32 from float64: torch's vectorized powf is within one unit of
    that in rare elements, and differs between CPUs, so the exact one is the one to ship.
    """
    exponents = np.arange(0, rope_dim, 2, dtype=np.float32) / np.float32(rope_dim)
    power: Frequencies = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / power


def llama3_frequencies(
    frequencies: Frequencies, *, factor: float, low: float, high: float, original_tokens: int
) -> Frequencies:
    """Llama 3.1's scaling: slow waves by `factor`, fast ones not, those between smoothly.

    Each operation is in float32 in the order of transformers' `_compute_llama3_parameters`.
    """
    if high <= low:
        raise CheckpointError(f"config.json: high_freq_factor {high} must exceed {low}")
    f = np.float32
    wavelength: npt.NDArray[Any] = f(2 * np.pi) / frequencies
    slow = wavelength > f(original_tokens / low)
    fast = wavelength < f(original_tokens / high)
    smooth = (f(original_tokens) / wavelength - f(low)) / f(high - low)
    between = (f(1) - smooth) * frequencies / f(factor) + smooth * frequencies
    scaled: Frequencies = np.where(slow, frequencies / f(factor), frequencies)
    result: Frequencies = np.where(slow | fast, scaled, between)
    return result
