"""Fixtures: run a kernel as plain Python and compiled for each CPU, and compare every bit."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
import pytest

from ondevice.codegen.loaded import run_kernel
from ondevice.lang.specialize import specialize
from ondevice.lang.text import parse_kernel, print_kernel

AVX2 = frozenset({"avx2", "fma", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}
CPUS = {"generic": frozenset(), "avx2": AVX2, "avxvnni": AVX2 | {"avxvnni"}, "avx512": AVX512}


def runnable(features):
    """Whether this machine executes code for these features."""
    if not llvm.get_default_triple().startswith("x86_64"):
        return not features
    host = llvm.get_host_cpu_features()
    return all(host.get(f, False) for f in features)


@pytest.fixture(params=list(CPUS))
def features(request):
    """The LLVM features of each CPU variant that this machine can run."""
    if not runnable(CPUS[request.param]):
        pytest.skip(f"this machine does not run {request.param}")
    return CPUS[request.param]


@pytest.fixture
def same_bits(features):
    """`same_bits(kernel, arrays, constants, dims, scalars, extras)`: compiled == plain Python.

    Returns the arrays after the run. The specialized kernel's text must parse back too.
    """

    def check(kernel, arrays, constants=None, dims=None, scalars=(), extras=None):
        constants, extras = constants or {}, extras or {}
        expected = [a.copy() for a in arrays]
        kernel(*expected, *scalars, **constants, **extras)
        compiled = specialize(kernel, dims or {}, constants)
        assert parse_kernel(print_kernel(compiled)) == compiled
        actual = [a.copy() for a in arrays]
        run_kernel(compiled, [*actual, *extras.values()], features, scalars)
        for a, b in zip(actual, expected, strict=True):
            assert a.tobytes() == b.tobytes(), f"differs at {np.argwhere(a != b)[:4].tolist()}"
        return expected

    return check
