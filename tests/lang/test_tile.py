"""`dot_tile`: the product of a matrix unit."""
# mypy: ignore-errors

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from ondevice.codegen.emit import check_intrinsics
from ondevice.codegen.llvm import print_function
from ondevice.codegen.loaded import run_kernel
from ondevice.errors import KernelError, ToolchainError
from ondevice.lang import dot_tile, f32, i32, kernel, load, parallel, scratch, store, u8
from ondevice.lang.specialize import specialize
from ondevice.lang.text import parse_kernel, print_kernel
from ondevice.targets.detect import host_features

MATRIX_UNIT = frozenset({"avx512f", "avx512bw", "amx-tile", "amx-int8"})


@kernel
def products(x: u8[T, 2, 512], w: u8[T, 1024], y: i32[T, 16, 16]):
    """y[t] = rows of x[t] . columns of w[t]"""
    out = scratch(i32, 2, 16, 16)
    for t in parallel(T):
        dot_tile(out, 1, x, t, 0, 0, w, t, 0)
        for m in range(16):
            store(y, t, m, 0, load(out, 1, m, 0, lanes=16))


@kernel
def of_floats(x: f32[T, 1024], y: i32[T, 16, 16]):
    """Rows that are no bytes"""
    out = scratch(i32, 16, 16)
    for t in parallel(T):
        dot_tile(out, x, t, 0, x, t, 0)


@kernel
def too_small(x: u8[T, 1024], y: i32[T, 16, 16]):
    """A result of another size"""
    out = scratch(i32, 16, 8)
    for t in parallel(T):
        dot_tile(out, x, t, 0, x, t, 0)


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    x, w = rng.integers(0, 256, (3, 2, 512), np.uint8), rng.integers(0, 256, (3, 1024), np.uint8)
    x[0], w[0] = 128, 128  # the largest products
    return [x, w, np.full((3, 16, 16), -1, np.int32)]


def test_plain_python_is_an_integer_product() -> None:
    x, w, y = arrays()
    products(x, w, y)
    rows = x.reshape(3, 16, 64).view(np.int8).astype(np.int64)
    columns = (
        w.view(np.int8).reshape(3, 16, 16, 4).swapaxes(2, 3).reshape(3, 64, 16).astype(np.int64)
    )
    assert (y == rows @ columns).all()
    assert y[0, 0, 0] == 64 * 128 * 128


def test_a_matrix_unit_gives_the_same() -> None:
    if not host_features() >= MATRIX_UNIT:
        pytest.skip("this CPU has no matrix unit")
    assert ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0  # ask for the tile registers
    x, w, y = arrays()
    expected = y.copy()
    products(x, w, expected)
    run_kernel(specialize(products, {}, {}), [x, w, y], MATRIX_UNIT)
    assert (y == expected).all()


def test_tiles_are_released() -> None:
    text = print_function(specialize(products, {}, {}), "k", MATRIX_UNIT)
    assert text.index("ldtilecfg") < text.index("tileloadd64") < text.index("tilerelease")


def test_text_parses_back() -> None:
    made = specialize(products, {}, {})
    assert "dot_tile(out, 1, x, t, 0, 0, w, t, 0)" in print_kernel(made)
    assert parse_kernel(print_kernel(made)) == made


@pytest.mark.parametrize(("wrong", "message"), [(of_floats, "bytes"), (too_small, "16, 16")])
def test_refused(wrong: object, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        specialize(wrong, {}, {})


def test_a_cpu_without_the_unit_is_refused() -> None:
    text = print_function(specialize(products, {}, {}), "k", MATRIX_UNIT - {"amx-int8"})
    with pytest.raises(ToolchainError, match="without the feature amx-int8"):
        check_intrinsics(text)
