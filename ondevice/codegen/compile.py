"""Kernels -> objects, one for each CPU variant, and objects -> libmodel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import llvmlite

from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.program import Program
from ondevice.codegen.cache import cached
from ondevice.codegen.descriptor import emit_descriptor
from ondevice.codegen.emit import LLVM_OPTION, emit_object
from ondevice.codegen.link import compile_runner, link_library
from ondevice.codegen.llvm import print_function, print_module
from ondevice.debug import Dump
from ondevice.lang.kernel_ir import Kernel
from ondevice.progress import Advance, ignore
from ondevice.targets import Target
from ondevice.targets.target import CpuVariant


@dataclass(frozen=True)
class CompiledVariant:
    """All kernels of a program for one CPU variant."""

    variant: CpuVariant
    symbols: Mapping[str, str]  # the kernel's symbol -> its symbol in this variant
    object: bytes


def compile_kernels(
    program: Program,
    kernels: Sequence[Sequence[Kernel]],
    target: Target,
    dump: Dump | None = None,
    advance: Advance = ignore,
) -> list[CompiledVariant]:
    """Every kernel for every CPU variant of the target, the variants side by side.

    A kernel comes as each variant computes it, in the target's order; one that a variant computes
    as its base does is compiled once. `advance` hears of each variant.
    """
    places = {variant.name: place for place, variant in enumerate(target.cpu.variants)}

    def owner(kernel: Sequence[Kernel], variant: CpuVariant) -> str:
        """The variant whose code it is."""
        same = variant.base and kernel[places[variant.base]] == kernel[places[variant.name]]
        return variant.base if same else variant.name

    def compiled(variant: CpuVariant) -> CompiledVariant:
        owners = [owner(kernel, variant) for kernel in kernels]
        symbols = {
            row.symbol: f"{row.symbol}_{own}"
            for row, own in zip(program.kernels, owners, strict=True)
        }
        features = frozenset(variant.features)
        functions = [
            print_function(kernel[places[own]], symbol, features, f".text.{symbol}")
            for kernel, symbol, own in zip(kernels, symbols.values(), owners, strict=True)
            if own == variant.name
        ]
        text = print_module(functions, target.triple)
        if dump:
            dump.file(f"kernels/{variant.name}.ll", text)
        key = ["llvm", llvmlite.__version__, LLVM_OPTION, target.triple, target.cpu.baseline, text]
        data = cached(key, lambda: emit_object(text, target.triple, target.cpu.baseline))
        advance(1)
        return CompiledVariant(variant, symbols, data)

    with ThreadPoolExecutor(max_workers=len(target.cpu.variants)) as pool:
        return list(pool.map(compiled, target.cpu.variants))


@dataclass(frozen=True)
class LinkedModel:
    """A program's code for a target, as files."""

    library: bytes  # libmodel: the variants' kernels behind one exported descriptor
    runner: bytes  # ondevice-run: a static executable of the same and the runtime


def link_model(
    program: Program, variants: Sequence[CompiledVariant], target: Target
) -> LinkedModel:
    """Link the kernels with a descriptor of the program; they may call nothing but themselves."""
    rows = [(v.variant.name, frozenset(v.variant.features), v.symbols) for v in variants]
    text = print_module([], target.triple, emit_descriptor(program, rows))
    descriptor = emit_object(text, target.triple, target.cpu.baseline)
    objects = [*(v.object for v in variants), descriptor]
    library = link_library(objects, target, target.model_library_name(program.abi_hash), stubs={})
    return LinkedModel(library, compile_runner(target, objects, model_symbol(program.abi_hash)))
