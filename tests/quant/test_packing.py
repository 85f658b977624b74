"""Compiled packers: bytes that mean what the layout says, near the weights as can be."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.kernels.packers import Packers
from ondevice.quant.layout import Array, unpack
from ondevice.quant.scheme import SCHEMES, Scheme

INTEGER = [s for s in SCHEMES.values() if s.group_size]
SHAPES = [(16, 32), (40, 100), (7, 172), (48, 576), (16, 1)]


def weights(rows: int, columns: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns)) * random.uniform(0.01, 0.2, (rows, 1))
    return values.astype(np.float32)


def relative_error(values: Array, scheme: Scheme) -> float:
    kept = unpack(Packers().pack(values, scheme), scheme, *values.shape)
    return float(np.linalg.norm(kept - values) / np.linalg.norm(values))


def round_to_nearest(values: Array, scheme: Scheme) -> Array:
    """The obvious quantizer in float64: no search, scales kept exact. [N, K], K a whole group."""
    groups = values.astype(np.float64).reshape(len(values), -1, scheme.group_size)
    if scheme.minima:
        least = np.minimum(groups.min(-1, keepdims=True), 0)
        most = np.maximum(groups.max(-1, keepdims=True), 0)
        scale = (most - least) / (2**scheme.bits - 1)
        return (np.rint((groups - least) / scale) * scale + least).reshape(values.shape)
    scale = np.abs(groups).max(-1, keepdims=True) / (2 ** (scheme.bits - 1) - 1)
    return (np.rint(groups / scale) * scale).reshape(values.shape)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_size_is_as_planned(scheme: Scheme, shape: tuple[int, int]) -> None:
    assert len(Packers().pack(weights(*shape), scheme)) == scheme.packed_bytes(*shape)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_that_of_the_bits(scheme: Scheme, shape: tuple[int, int]) -> None:
    limits = {"f32": 0.0, "f16": 5e-4, "int8_g256": 0.008, "int4_g32": 0.1, "int4_g32_sym": 0.11}
    assert relative_error(weights(*shape), scheme) <= limits[scheme.name]


@pytest.mark.parametrize("scheme", INTEGER, ids=lambda s: s.name)
def test_search_beats_rounding(scheme: Scheme) -> None:
    values = weights(64, 512)
    obvious = np.linalg.norm(round_to_nearest(values, scheme) - values) / np.linalg.norm(values)
    assert relative_error(values, scheme) < (1.0 if scheme.bits == 4 else 1.02) * obvious


@pytest.mark.parametrize("scheme", INTEGER, ids=lambda s: s.name)
@pytest.mark.parametrize("factor", [1e-12, 1e-4, 1e4, 1e12])
def test_scale_does_not_matter(scheme: Scheme, factor: float) -> None:
    values = weights(32, 128)
    scaled = relative_error(values * np.float32(factor), scheme)
    assert scaled == pytest.approx(relative_error(values, scheme), rel=0.02)


@pytest.mark.parametrize("scheme", INTEGER, ids=lambda s: s.name)
def test_zeros_and_constants_survive(scheme: Scheme) -> None:
    zeros = np.zeros((16, 64), np.float32)
    np.testing.assert_array_equal(unpack(Packers().pack(zeros, scheme), scheme, 16, 64), zeros)
    assert relative_error(np.full((16, 64), 0.37, np.float32), scheme) < 0.0005


@pytest.mark.parametrize("scheme", INTEGER, ids=lambda s: s.name)
def test_blocks_do_not_matter(scheme: Scheme) -> None:
    values = weights(96, 192)
    whole = Packers().pack(values, scheme)
    halves = [Packers().pack(part, scheme) for part in (values[:48], values[48:])]
    assert b"".join(halves) == whole


def test_whole_scales_and_minima_hold_their_own_grid() -> None:
    """Scales and minima are whole numbers of a section's unit: such weights lose almost nothing."""
    random = np.random.default_rng(1)
    codes = random.integers(0, 16, (32, 8, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    scale = random.integers(8, 17, (32, 8, 1))
    scale[:, 0] = 16
    values = (codes * scale - 8 * scale + 1).reshape(32, 256).astype(np.float32)
    assert relative_error(values, SCHEMES["int4_g32"]) < 0.005
