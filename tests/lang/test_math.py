"""Functions written in the kernel language: accurate, and the same bits on every CPU."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.lang import Chain, Inline, ceildiv, f32, kernel, load, parallel, store
from ondevice.lang.math import exp, exp_below, gelu_tanh, sigmoid, silu, tanh


@kernel
def apply(x: f32[N], y: f32[N], *, f: Inline):
    for b in parallel(ceildiv(N, 16)):
        n = b * 16
        store(y, n, f(load(x, n, lanes=16, count=N - n)), count=N - n)


@kernel
def apply_scalar(x: f32[N], y: f32[N], *, f: Inline):
    for n in parallel(N):
        y[n] = f(x[n])


INPUTS = np.concatenate(
    [np.linspace(-110, 95, 1501), np.linspace(-1, 1, 301), [0.0, -0.0, 1e-30, -1e-38, 1e38, -1e38]]
).astype(np.float32)
WIDE = INPUTS.astype(np.float64)
with np.errstate(over="ignore", invalid="ignore"):
    TRUTH = {
        exp: np.exp(WIDE),
        sigmoid: 1 / (1 + np.exp(-WIDE)),
        silu: WIDE / (1 + np.exp(-WIDE)),
        tanh: np.tanh(WIDE),
        gelu_tanh: 0.5 * WIDE * (1 + np.tanh(np.sqrt(2 / np.pi) * (WIDE + 0.044715 * WIDE**3))),
    }


@pytest.mark.parametrize("f", TRUTH, ids=lambda f: f.name)
def test_accurate_and_same_bits(f, same_bits):
    _, y = same_bits(apply, [INPUTS, np.zeros_like(INPUTS)], {"f": Chain((f,))})
    truth = TRUTH[f]
    normal = (np.abs(truth) > 1.2e-38) & (np.abs(truth) < 3.4e38) & (np.abs(WIDE) < 80)
    with np.errstate(invalid="ignore"):
        error = np.abs(y - truth)
    if f is gelu_tanh:  # 1 + tanh cancels for negative x
        assert error[np.abs(WIDE) < 80].max() < 1e-5
    else:
        assert (error[normal] / np.abs(truth[normal])).max() < (2e-7 if f is exp else 4e-7)
    _, one = same_bits(
        apply_scalar, [INPUTS[::16].copy(), np.zeros_like(INPUTS[::16])], {"f": Chain((f,))}
    )
    assert one.tobytes() == y[::16].tobytes()


def test_exp_below(same_bits):
    x = INPUTS[INPUTS <= 0]
    _, y = same_bits(apply, [x, np.zeros_like(x)], {"f": Chain((exp_below,))})
    assert (y[x < -86] == 0).all() and (y[x == 0] == 1).all()
    near = x >= -86
    assert np.abs(y[near] / np.exp(x[near].astype(np.float64)) - 1).max() < 4e-7
    x = np.array([-np.inf, -1e30, -104, -86.1, np.nan], np.float32)
    _, y = same_bits(apply, [x, np.ones_like(x)], {"f": Chain((exp_below,))})
    assert (y[:4] == 0).all() and np.isnan(y[4])


def test_exp_at_its_ends(same_bits):
    x = np.array([-np.inf, -200, -104, -100, -88, 0, 88.7, 88.8, 200, np.inf, np.nan], np.float32)
    _, y = same_bits(apply, [x, np.zeros_like(x)], {"f": Chain((exp,))})
    assert y[0] == y[1] == 0.0 and y[8] == y[9] == np.inf and np.isnan(y[10])
    assert 0 < y[3] < 1.2e-38  # a subnormal
    assert y[5] == 1.0 and y[6] < np.inf and y[7] == np.inf
