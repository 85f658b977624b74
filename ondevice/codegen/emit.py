"""From LLVM text to object code, and objects loaded in process for tests.

LLVM ends the process when it meets an intrinsic that the CPU features of its function do not have;
`check_intrinsics` refuses such text first.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from ondevice.codegen.llvm import print_function, print_module
from ondevice.errors import ToolchainError
from ondevice.lang.evaluate import task_count
from ondevice.lang.kernel_ir import Kernel

# Kernels are written in the order in which their results stay in registers; LLVM's scheduler does
# not see that, and took a quarter of the speed of matrix products.
LLVM_OPTION = "-enable-misched=false"

# The beginning of an intrinsic's name -> the features of which its function needs one ("" = none).
ALLOWED: dict[str, tuple[str, ...]] = {
    "llvm.fma.": ("",),
    "llvm.sqrt.": ("",),
    "llvm.floor.": ("",),
    "llvm.roundeven.": ("",),
    "llvm.fabs.": ("",),
    "llvm.abs.": ("",),
    "llvm.prefetch.": ("",),
    "llvm.masked.load.": ("",),
    "llvm.masked.store.": ("",),
    "llvm.x86.avx2.pmadd.": ("avx2",),
    "llvm.x86.avx2.psign.": ("avx2",),
    "llvm.x86.avx512.vpdpbusd.512": ("avx512vnni",),
    "llvm.x86.avx512.vpdpbusd.256": ("avxvnni",),
    "llvm.x86.ldtilecfg": ("amx-tile",),
    "llvm.x86.tile": ("amx-tile",),
    "llvm.x86.tdpb": ("amx-int8",),
    "llvm.aarch64.neon.sdot.": ("dotprod",),
    "llvm.aarch64.neon.usdot.": ("i8mm",),
    "llvm.aarch64.neon.saddlp.": ("neon",),
    "llvm.aarch64.neon.smull.": ("neon",),
    "llvm.aarch64.neon.addp.": ("neon",),
}
_DEFINITION = re.compile(r"^define [^@]*@([\w.$]+)\((.*?)^}", re.MULTILINE | re.DOTALL)
_FEATURES = re.compile(r'"target-features"="([^"]*)"')
_INTRINSIC = re.compile(r"@(llvm\.[\w.]+)")


def check_intrinsics(llvm_text: str) -> None:
    """Raise ToolchainError where a function calls an intrinsic that its features do not allow."""
    for symbol, text in _DEFINITION.findall(llvm_text):
        listed = _FEATURES.search(text)
        features = {f.lstrip("+") for f in listed[1].split(",")} if listed else set()
        for name in set(_INTRINSIC.findall(text)):
            needed = next((v for k, v in ALLOWED.items() if name.startswith(k)), None)
            if needed is None:
                raise ToolchainError(f"{symbol} calls {name}, which is not in codegen.emit.ALLOWED")
            if not features.union([""]).intersection(needed):
                wanted = " or ".join(needed)
                raise ToolchainError(f"{symbol} calls {name} without the feature {wanted}")


@functools.cache
def initialize_llvm() -> None:
    llvm.set_option("ondevice", LLVM_OPTION)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def emit_object(
    llvm_text: str, triple: str, cpu: str = "", features: str = "", opt: int = 2
) -> bytes:
    """Compile a module to an object file.

    `features` are LLVM's ("+avx2,+fma") for functions that name none. Position-independent, small
    code model. Raises ToolchainError with LLVM's message.
    """
    return compile_module(llvm_text, triple, cpu, features, opt, assembly=False)


def emit_assembly(
    llvm_text: str, triple: str, cpu: str = "", features: str = "", opt: int = 2
) -> str:
    """As `emit_object`, in the target's assembly language: for dumps and tests."""
    return compile_module(llvm_text, triple, cpu, features, opt, assembly=True).decode()


def compile_module(
    llvm_text: str, triple: str, cpu: str, features: str, opt: int, assembly: bool
) -> bytes:
    check_intrinsics(llvm_text)
    initialize_llvm()
    try:
        target = llvm.Target.from_triple(triple)
        machine = target.create_target_machine(
            cpu=cpu, features=features, opt=opt, reloc="pic", codemodel="small"
        )
        with llvm.create_context() as context, llvm.parse_assembly(llvm_text, context) as module:
            module.data_layout = str(machine.target_data)
            module.verify()
            if assembly:
                return str(machine.emit_assembly(module)).encode()
            return bytes(machine.emit_object(module))
    except RuntimeError as error:
        raise ToolchainError(f"LLVM refused the code for {triple}: {error}") from error


def llvm_version() -> str:
    """Such as "22.1.0"."""
    return ".".join(map(str, llvm.llvm_version_info))


def host_triple() -> str:
    return str(llvm.get_process_triple())


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
