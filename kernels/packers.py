"""Weights packed by compiled kernels on the machine that builds."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import llvmlite
import numpy as np
from ondevice.kernels.quantize import pack_affine, pack_symmetric

from ondevice import targets
from ondevice.codegen.cache import cached
from ondevice.codegen.emit import LoadedObject, call_kernel, emit_object, host_triple, load_object
from ondevice.codegen.llvm import print_function, print_module
from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.specialize import specialize
from ondevice.quant.layout import Array, pack_floats
from ondevice.quant.scheme import ROW_BLOCK, Scheme
from ondevice.targets.detect import host_features

SEARCH_STEPS = {4: 16, 8: 4}  # scales tried per group, by bits: 8 bits have little to gain


class Packers:
    """Packs blocks of rows; kernels are compiled once for each scheme and number of columns.

    The bytes do not depend on the machine or the number of threads.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)

    def pack(self, values: Array, scheme: Scheme) -> bytes:
        """f32 [N, K] -> packed bytes; N is a multiple of 16, or the block ends its tensor."""
        if not scheme.group_size:
            return pack_floats(values, scheme)
        rows, columns = values.shape
        kernel, loaded = _packer(scheme, columns)
        function = loaded.function(kernel.name)
        packed = np.empty(scheme.packed_shape(rows, columns), np.uint8)
        blocks = len(packed)
        step = -(-blocks // self._threads)
        parts = [range(i, min(i + step, blocks)) for i in range(0, blocks, step)]

        def run(part: range) -> None:
            call_kernel(function, kernel, (values, packed), tasks=part)

        list(self._pool.map(run, parts))
        return packed.tobytes()

    def close(self) -> None:
        self._pool.shutdown()


@cache
def _packer(scheme: Scheme, columns: int) -> tuple[Kernel, LoadedObject]:
    row_bytes = scheme.packed_shape(ROW_BLOCK, columns)[-1]
    dims: dict[str, int | str] = {"K": columns, "ROW": row_bytes}
    steps = SEARCH_STEPS[scheme.bits]
    if scheme.zero_point:
        kernel = specialize(pack_affine, dims, {"steps": steps})
    else:
        kernel = specialize(pack_symmetric, dims, {"bits": scheme.bits, "steps": steps})
    features = _features()
    text = print_module([print_function(kernel, kernel.name, features)], host_triple())
    key = ["packer", llvmlite.__version__, text]
    return kernel, load_object(cached(key, lambda: emit_object(text, host_triple())))


def _features() -> frozenset[str]:
    """Those of the best CPU variant of the host's target that this machine can run."""
    present = host_features()
    for variant in targets.load("host").cpu.variants:
        if present.issuperset(variant.features):
            return frozenset(variant.features)
    return frozenset()
