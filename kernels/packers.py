"""Weights packed, and what they lost measured, by compiled kernels on the machine that builds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import llvmlite
import numpy as np

from ondevice import targets
from ondevice.codegen.cache import cached
from ondevice.codegen.emit import LLVM_OPTION, emit_object, host_triple
from ondevice.codegen.llvm import print_function, print_module
from ondevice.codegen.loaded import LoadedObject, call_kernel, load_object
from ondevice.errors import TargetError
from ondevice.kernels.measure import measure_rounding, measure_sections
from ondevice.kernels.quantize import pack_bytes, pack_nibbles
from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.specialize import specialize
from ondevice.quant.layout import Array, pack_floats
from ondevice.quant.scheme import ROW_BLOCK, Scheme
from ondevice.targets.detect import host_features

SEARCH_STEPS = 6  # scales tried for each group of 4-bit codes

KernelOf = Callable[[Scheme, int], tuple[Kernel, LoadedObject]]


class Packers:
    """Packs blocks of rows; kernels are compiled once for each scheme and number of columns.

    Any number of threads may use one at once. The bytes do not depend on the machine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # to compile a kernel once

    def pack(self, values: Array, scheme: Scheme) -> bytes:
        """f32 [N, K] -> packed bytes; N is a multiple of 16, or the block ends its tensor."""
        if not scheme.group_size:
            return pack_floats(values, scheme)
        packed = np.empty(scheme.packed_shape(*values.shape), np.uint8)
        self._run(_packer, scheme, (values, packed))
        return packed.tobytes()

    def squared_error(self, values: Array, packed: bytes, scheme: Scheme) -> tuple[float, float]:
        """(sum of (values - unpacked)^2, sum of values^2) of what `pack` has just packed."""
        rows, columns = values.shape
        if scheme.group_size:
            data = np.frombuffer(packed, np.uint8).reshape(scheme.packed_shape(rows, columns))
            squares = np.empty((len(data), 2, ROW_BLOCK), np.float32)
            self._run(_measure, scheme, (values, data, squares))
        else:  # floats lose only what their dtype cannot hold
            squares = np.empty((rows, 2, 16), np.float32)
            self._run(_measure, scheme, (values, squares))
        error, power = squares.sum(axis=(0, 2), dtype=np.float64).tolist()
        return error, power

    def _run(self, kernel_of: KernelOf, scheme: Scheme, arrays: tuple[Array, ...]) -> None:
        with self._lock:
            kernel, loaded = kernel_of(scheme, arrays[0].shape[1])
            function = loaded.function(kernel.name)
        call_kernel(function, kernel, arrays)


@cache
def _packer(scheme: Scheme, columns: int) -> tuple[Kernel, LoadedObject]:
    if scheme.bits == 8:
        return _compiled(specialize(pack_bytes, _dims(scheme, columns), {}))
    constants = {"minima": scheme.minima, "steps": SEARCH_STEPS}
    return _compiled(specialize(pack_nibbles, _dims(scheme, columns), constants))


@cache
def _measure(scheme: Scheme, columns: int) -> tuple[Kernel, LoadedObject]:
    if not scheme.group_size:
        return _compiled(specialize(measure_rounding, {"K": columns}, {"W": scheme.dtype}))
    constants = {"bits": scheme.bits, "minima": scheme.minima}
    return _compiled(specialize(measure_sections, _dims(scheme, columns), constants))


def _dims(scheme: Scheme, columns: int) -> dict[str, int | str]:
    return {"K": columns, "ROW": scheme.packed_shape(ROW_BLOCK, columns)[-1]}


def _compiled(kernel: Kernel) -> tuple[Kernel, LoadedObject]:
    text = print_module([print_function(kernel, kernel.name, _features())], host_triple())
    key = ["packer", llvmlite.__version__, LLVM_OPTION, text]
    return kernel, load_object(cached(key, lambda: emit_object(text, host_triple())))


def _features() -> frozenset[str]:
    """Those of the best CPU variant of the host's target that this machine can run."""
    present = host_features()
    for variant in targets.load("host").cpu.variants:
        if present.issuperset(variant.features):
            return frozenset(variant.features)
    raise TargetError("this machine's CPU has the features of no variant of its own target")
