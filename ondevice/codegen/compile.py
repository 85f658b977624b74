"""Kernels -> objects for each CPU variant, and objects -> libmodel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.program import Program
from ondevice.closes import Closes
from ondevice.codegen.descriptor import emit_descriptor
from ondevice.codegen.emit import emit_object
from ondevice.codegen.emitters import Emitters, KernelJob
from ondevice.codegen.link import compile_runner, link_library
from ondevice.codegen.llvm import print_module
from ondevice.debug import Dump
from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.text import print_kernel
from ondevice.progress import Advance, ignore
from ondevice.targets import Target
from ondevice.targets.target import CpuVariant


@dataclass(frozen=True)
class CompiledVariant:
    """All kernels of a program for one CPU variant."""

    variant: CpuVariant
    symbols: Mapping[str, str]  # the kernel's symbol -> its symbol in this variant
    objects: tuple[bytes, ...]  # one for each kernel that is not another variant's


class KernelJobs(Closes):
    """Kernels on their way to objects, in processes beside this one.

    A kernel comes as each CPU variant of the target computes it, in the target's order; one that a
    variant computes as its base does is compiled once. Each is kept by itself: models of other
    sizes share some.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.started: set[str] = set()
        self._emitters = Emitters()
        self._jobs: dict[str, KernelJob] = {}  # by symbol of a variant
        self._objects: dict[str, Future[bytes]] = {}

    def start(self, symbol: str, kernel: Sequence[Kernel], texts: Sequence[str]) -> None:
        """Begin to compile a kernel; `texts` is what `print_kernel` says of it for each variant."""
        triple, cpu = self.target.triple, self.target.cpu
        for variant, own, text in zip(cpu.variants, kernel, texts, strict=True):
            name = f"{symbol}_{variant.name}"
            if name not in self._jobs and self._owner(kernel, variant) == variant.name:
                features = frozenset(variant.features)
                job = KernelJob(own, text, name, features, triple, cpu.baseline)
                self._jobs[name], self._objects[name] = job, self._emitters.emit(job)
        self.started.add(symbol)

    def wait(self, variant: CpuVariant, kernels: Mapping[str, Sequence[Kernel]]) -> CompiledVariant:
        """All of a program's kernels, by symbol, for one CPU variant; they have been started."""
        owners = {symbol: self._owner(kernel, variant) for symbol, kernel in kernels.items()}
        symbols = {symbol: f"{symbol}_{owner}" for symbol, owner in owners.items()}
        objects = (self._objects[name].result() for name in self._own(variant, symbols))
        return CompiledVariant(variant, symbols, tuple(objects))

    def text(self, compiled: CompiledVariant) -> str:
        """The LLVM text of a variant's own kernels, as one module."""
        own = self._own(compiled.variant, compiled.symbols)
        return print_module([self._jobs[name].function() for name in own], self.target.triple)

    def close(self) -> None:
        self._emitters.close()

    def _owner(self, kernel: Sequence[Kernel], variant: CpuVariant) -> str:
        """The variant whose code of a kernel another one runs."""
        places = {variant.name: place for place, variant in enumerate(self.target.cpu.variants)}
        same = variant.base and kernel[places[variant.base]] == kernel[places[variant.name]]
        return variant.base if same else variant.name

    def _own(self, variant: CpuVariant, symbols: Mapping[str, str]) -> list[str]:
        owned = {symbol: f"{symbol}_{variant.name}" for symbol in symbols}
        return [name for symbol, name in symbols.items() if name == owned[symbol]]


def compile_kernels(
    program: Program,
    kernels: Sequence[Sequence[Kernel]],
    jobs: KernelJobs,
    dump: Dump | None = None,
    advance: Advance = ignore,
) -> list[CompiledVariant]:
    """Every kernel for every CPU variant of the target; `advance` hears of each variant."""
    by_symbol = {row.symbol: kernel for row, kernel in zip(program.kernels, kernels, strict=True)}
    assert len(by_symbol) == len(kernels), "kernels that differ have the same symbol"
    for symbol, kernel in by_symbol.items():
        if symbol not in jobs.started:
            jobs.start(symbol, kernel, list(map(print_kernel, kernel)))
    compiled = []
    for variant in jobs.target.cpu.variants:
        compiled.append(jobs.wait(variant, by_symbol))
        if dump:
            dump.file(f"kernels/{variant.name}.ll", jobs.text(compiled[-1]))
        advance(1)
    return compiled


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
    objects = [*(data for v in variants for data in v.objects), descriptor]
    name, symbol = target.model_library_name(program.abi_hash), model_symbol(program.abi_hash)
    with ThreadPoolExecutor(1) as pool:
        runner = pool.submit(compile_runner, target, objects, symbol)
        library = link_library(objects, target, name, stubs={})
        return LinkedModel(library, runner.result())
