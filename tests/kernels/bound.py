"""Bound: a library row on a case, run as plain Python or compiled."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ondevice.codegen.emit import emit_object, host_triple
from ondevice.codegen.llvm import print_function, print_module
from ondevice.codegen.loaded import LoadedObject, call_kernel, load_object
from ondevice.dims import Extent
from ondevice.graph.graph import Attrs
from ondevice.graph.ops import ACTIVATIONS
from ondevice.kernels import LIBRARY
from ondevice.lang.dsl import Chain, hole_buffers
from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.library import Binding, Instance, KernelDef, hole_steps, instantiate

from .cases import Array, Case, case, dequantized, packed_activations


@dataclass(frozen=True)
class Bound:
    """`row` on `case`, with a tile; the bits of its result are what the tests compare."""

    row: KernelDef
    case: Case
    tile: Attrs

    @property
    def binding(self) -> Binding:
        binding = self.row.bind(self.case.node, self.case.types)
        assert binding is not None
        return binding

    @property
    def instance(self) -> Instance:
        return specialized(self.row.name, self.case.name, self.tile)

    def plain(self) -> Array:
        """The result of the plain-Python run."""
        binding = self.binding
        arrays = self.arrays()
        constants: dict[str, Any] = {**binding.constants, **dict(self.tile)}
        extras = {}
        for hole in self.row.holes:
            applied = hole_steps(hole, self.case.node)
            constants[hole] = Chain(tuple(LIBRARY.steps[step.op] for step in applied))
            names = [name for step in applied for name in step.inputs if name != "_"]
            buffers = [buffer for _, buffer, _ in hole_buffers(hole, constants[hole])]
            extras |= {b: self.case.values[n] for b, n in zip(buffers, names, strict=True)}
        given = [arrays[view.value] for view in binding.views]
        self.row.function(*given, *self.scalars(), **constants, **extras)
        return self.result(arrays)

    def compiled(self, features: frozenset[str]) -> Array:
        """The result of the compiled kernel."""
        instance = self.instance
        arrays = self.arrays() | {
            name: self.case.values[name] for name in instance.buffers if name not in self.views()
        }
        given = [arrays[name] for name in instance.buffers]
        function = loaded(instance.kernel, features).function("kernel")
        call_kernel(function, instance.kernel, given, self.scalars())
        return self.result(arrays)

    def scalars(self) -> tuple[int, ...]:
        values = self.binding.scalars.values()
        return tuple(Extent.of(value).evaluate(self.case.sizes) for value in values)

    def views(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the kernel's own buffers, by the names of the values in them."""
        sizes = self.case.sizes
        return {v.value: tuple(d.evaluate(sizes) for d in v.shape) for v in self.binding.views}

    def arrays(self) -> dict[str, Array]:
        """Fresh arrays by value; the result starts as something it must not stay."""
        arrays = {}
        for name, shape in self.views().items():
            if self.case.types[name].scheme == ACTIVATIONS and name in self.case.values:
                tile = shape[2] * shape[3] // 80
                arrays[name] = packed_activations(self.case.values[name], tile)
            elif name in self.case.values:
                array = self.case.packed.get(name, self.case.values[name])
                arrays[name] = array.reshape(shape).copy()
            elif self.case.types[name].scheme:
                arrays[name] = np.full(shape, 0xA5, np.uint8)
            else:
                arrays[name] = np.full(shape, np.nan, np.float32)
        return arrays

    def result(self, arrays: dict[str, Array]) -> Array:
        name, shape = self.case.result, self.case.shape(self.case.result)
        if self.case.types[name].scheme:
            return dequantized(arrays[name], *shape)
        return arrays[name].reshape(shape)

    def of_rows(self, begin: int, end: int) -> Bound:
        return replace(self, case=self.case.of_rows(begin, end))

    def having(self, **values: Array) -> Bound:
        """The same with other values of these inputs."""
        changed = replace(self.case, values={**self.case.values, **values})
        return replace(self, case=changed)


@cache
def specialized(row: str, name: str, tile: Attrs) -> Instance:
    """The row for a case: one kernel for any number of rows."""
    example = case(name, 1)
    return instantiate(LIBRARY, LIBRARY.kernels[row], example.node, example.types, tile)


@cache
def loaded(kernel: Kernel, features: frozenset[str]) -> LoadedObject:
    if "amx-tile" in features:
        permit_tiles()
    text = print_module([print_function(kernel, "kernel", features)], host_triple())
    return load_object(emit_object(text, host_triple()))


@cache
def permit_tiles() -> None:
    """Ask Linux for the tile registers, as the runtime does: arch_prctl(ARCH_REQ_XCOMP_PERM)."""
    assert ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0
