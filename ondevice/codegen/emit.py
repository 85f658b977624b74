"""From LLVM text to object code.

LLVM ends the process when it meets an intrinsic that the CPU features of its function do not have;
`check_intrinsics` refuses such text first.
"""

from __future__ import annotations

import functools
import re

import llvmlite.binding as llvm

from ondevice.errors import ToolchainError

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
