"""`prefetch`: a hint that changes nothing."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import pytest

from ondevice.codegen.emit import emit_assembly
from ondevice.codegen.llvm import print_function, print_module
from ondevice.codegen.loaded import run_kernel
from ondevice.errors import KernelError
from ondevice.lang import f32, kernel, load, parallel, prefetch, store
from ondevice.lang.specialize import specialize
from ondevice.lang.text import parse_kernel, print_kernel


@kernel
def copy(x: f32[N, 32], y: f32[N, 32]):
    """y = x, the next row wanted while one is copied"""
    for n in parallel(N):
        for k in range(0, 32, 16):
            prefetch(x, min(n + 1, N - 1), k)
            store(y, n, k, load(x, n, k, lanes=16))


@kernel
def beyond(x: f32[N, 32], y: f32[N, 32]):
    """A place that the buffer does not have"""
    for n in parallel(N):
        prefetch(x, n, 32)
        y[n, 0] = x[n, 0]


@kernel
def of_nothing(x: f32[N], y: f32[N]):
    for n in parallel(N):
        prefetch()
        y[n] = x[n]


def test_changes_no_value() -> None:
    x = np.arange(160, dtype=np.float32).reshape(5, 32)
    for run in (copy, lambda *arrays: run_kernel(specialize(copy, {}, {}), arrays, frozenset())):
        y = np.zeros_like(x)
        run(x, y)
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("triple", "instruction"), [("x86_64-linux", "prefetcht1"), ("aarch64-linux", "prfm")]
)
def test_is_an_instruction_of_the_cpu(triple: str, instruction: str) -> None:
    function = print_function(specialize(copy, {}, {}), "k", frozenset())
    assert instruction in emit_assembly(print_module([function], triple), triple)


def test_text_parses_back() -> None:
    made = specialize(copy, {}, {})
    assert "prefetch(x, min(n + 1, N - 1), k)" in print_kernel(made)
    assert parse_kernel(print_kernel(made)) == made


@pytest.mark.parametrize(
    ("wrong", "message"), [(beyond, "outside 0:32"), (of_nothing, "needs a buffer")]
)
def test_refused(wrong: object, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        specialize(wrong, {}, {})
