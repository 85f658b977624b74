"""Every operator and intrinsic under qemu: NEON, dotprod and i8mm give the bits of plain Python."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.specialize import specialize

from ..lang.test_intrinsics import CASES, apply, data
from .arm64_kernels import PARTIAL, partial, words
from .emulated import CPUS, EmulatedKernels

Arrays = list[NDArray[np.generic]]


def intrinsic_arrays(name: str) -> Arrays:
    _, a, b, lanes, to = CASES[name]
    return [*data(a, 8 * lanes), np.zeros(8 * to, b.np)]


def intrinsic_constants(name: str) -> dict[str, object]:
    f, a, b, lanes, to = CASES[name]
    return {"f": f, "a": a, "b": b, "lanes": lanes, "to": to}


def partial_arrays(name: str) -> Arrays:
    dtype = PARTIAL[name]
    x = np.arange(1, 1 + 21 * 23).reshape(21, 23).astype(dtype.np)
    return [x, np.full_like(x, 7)]


def word_arrays() -> Arrays:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (5, 40), np.uint8), np.zeros((5, 10, 16), np.int32)]


@pytest.fixture(scope="module", params=list(CPUS))
def emulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EmulatedKernels:
    """All kernels of this file in one program for the variant."""
    kernels: dict[str, Kernel] = {
        name: specialize(apply, {}, intrinsic_constants(name)) for name in CASES
    }
    kernels |= {name: specialize(partial, {}, {"a": a}) for name, a in PARTIAL.items()}
    kernels["words"] = specialize(words, {}, {})
    return EmulatedKernels(kernels, request.param, tmp_path_factory.mktemp(request.param))


def check(emulated: EmulatedKernels, name: str, arrays: Arrays, plain: Callable[..., None]) -> None:
    expected = [array.copy() for array in arrays]
    plain(*expected)
    for actual, wanted in zip(emulated.run(name, arrays), expected, strict=True):
        assert actual.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_intrinsics(emulated: EmulatedKernels, name: str) -> None:
    constants = intrinsic_constants(name)
    check(emulated, name, intrinsic_arrays(name), lambda *arrays: apply(*arrays, **constants))


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_loads_and_stores(emulated: EmulatedKernels, name: str) -> None:
    """A buffer ends at a page that may not be touched, and every count occurs."""
    check(emulated, name, partial_arrays(name), lambda *a: partial(*a, a=PARTIAL[name]))


def test_words_of_bytes(emulated: EmulatedKernels) -> None:
    """Words that are lanes of 16 bytes, and those that lie too near the end for it."""
    check(emulated, "words", word_arrays(), words)
