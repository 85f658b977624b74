"""Kernels loaded and run in this process: the packers of a build, and tests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from ondevice.codegen.emit import emit_object, host_triple, initialize_llvm
from ondevice.codegen.llvm import print_function, print_module
from ondevice.errors import ToolchainError
from ondevice.lang.evaluate import task_count
from ondevice.lang.kernel_ir import Kernel


class LoadedObject:
    """An object file loaded into this process; it lives as long as this Python object."""

    def __init__(self, data: bytes) -> None:
        initialize_llvm()
        machine = llvm.Target.from_triple(host_triple()).create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self.engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(data))
        self.engine.finalize_object()

    def address(self, symbol: str) -> int:
        address = int(self.engine.get_function_address(symbol))
        if not address:
            raise ToolchainError(f"the object does not define {symbol}")
        return address

    def function(self, symbol: str) -> Callable[..., None]:
        """A kernel by its symbol, with the compiled ABI of `codegen.llvm`."""
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        return ctypes.CFUNCTYPE(None, pointer, pointer, number, number, pointer)(
            self.address(symbol)
        )


def load_object(data: bytes) -> LoadedObject:
    """Load an object for this machine without a linker."""
    return LoadedObject(data)


def run_kernel(
    kernel: Kernel,
    arrays: Sequence[npt.NDArray[Any]],
    features: frozenset[str],
    scalars: Sequence[int] = (),
    tasks: range | None = None,
) -> None:
    """Compile `kernel` for this machine and run it on `arrays` in place.

    `arrays` are C-contiguous, in the order of `kernel.buffers`; run-time dims are taken from their
    shapes, `scalars` are the index parameters.
    """
    text = print_module([print_function(kernel, "kernel", features)], host_triple())
    loaded = load_object(emit_object(text, host_triple()))
    call_kernel(loaded.function("kernel"), kernel, arrays, scalars, tasks)


def call_kernel(
    function: Callable[..., None],
    kernel: Kernel,
    arrays: Sequence[npt.NDArray[Any]],
    scalars: Sequence[int] = (),
    tasks: range | None = None,
) -> None:
    """Call a compiled kernel on NumPy arrays; ValueError where they do not fit its buffers."""
    values: dict[str, int] = {}
    for buffer, array in zip(kernel.buffers, arrays, strict=True):
        if array.dtype != buffer.dtype.np or not array.flags.c_contiguous:
            raise ValueError(f"{buffer.name} must be a C-contiguous array of {buffer.dtype}")
        for dim, size in zip(buffer.dims, array.shape, strict=True):
            known = values.setdefault(dim, size) if isinstance(dim, str) else dim
            if known != size:
                raise ValueError(f"{buffer.name}: dimension {dim} is {size}, elsewhere {known}")
    given = iter(scalars)
    numbers = [values[s] if s in values else next(given) for s in kernel.scalars]
    values |= dict(zip(kernel.scalars, numbers, strict=True))
    tasks = range(task_count(kernel, values)) if tasks is None else tasks
    pointers = (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))
    integers = (ctypes.c_int32 * max(1, len(numbers)))(*numbers)
    scratch = np.zeros(kernel.scratch_bytes + 64, np.uint8)
    function(pointers, integers, tasks.start, tasks.stop, scratch.ctypes.data)
