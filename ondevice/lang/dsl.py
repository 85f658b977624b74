"""`@kernel`, `@inline` and `Chain`: kernel functions as Python objects.

Decorating parses nothing yet; a function's source is read once, when it is first specialized or
run. Calling a KernelFunction runs it as plain Python on NumPy arrays.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ondevice.dtypes import DTYPES, DType
from ondevice.errors import KernelError, nearest
from ondevice.lang import reference
from ondevice.lang.intrinsics import INTRINSICS
from ondevice.lang.parse import Parameter, Source, parse_function

MEANINGS: dict[str, Any] = {row.name: row.body for row in INTRINSICS.values()}


def closure_values(function: types.FunctionType) -> dict[str, Any]:
    """The free variables of a function defined inside another one."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def with_globals(function: types.FunctionType, names: dict[str, Any]) -> types.FunctionType:
    """The same code with other global names: intrinsics shadow Python's builtins such as min."""
    copy = types.FunctionType(
        function.__code__, names, function.__name__, None, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def bind_dims(parameter: Parameter, array: reference.Array, dims: dict[str, int]) -> None:
    """Give the dimensions of a buffer's annotation their sizes; KernelError on a contradiction."""
    shape = array.array.shape
    if len(shape) != len(parameter.dims):
        raise KernelError(f"{parameter.name} has {len(shape)} dims, not {len(parameter.dims)}")
    for dim, size in zip(parameter.dims, shape, strict=True):
        known = dims.setdefault(dim, size) if isinstance(dim, str) else dim
        if known != size:
            raise KernelError(f"{parameter.name}: dimension {dim} is {size}, elsewhere {known}")


@dataclass(frozen=True)
class InlineFunction:
    """A function expanded where it is called; `constants` fixes keyword-only parameters."""

    function: types.FunctionType
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    @cached_property
    def source(self) -> Source:
        return parse_function(self.function, False, closure_values(self.function))

    def bind(self, **constants: int | float | bool | DType) -> InlineFunction:
        """The same function with these compile-time parameters fixed, e.g. as a step of a Chain."""
        return InlineFunction(self.function, (*self.constants, *constants.items()))

    @cached_property
    def names(self) -> dict[str, Any]:
        """The globals of the plain-Python run; `__call__` adds the dims."""
        return {**self.function.__globals__, **MEANINGS}

    @cached_property
    def runnable(self) -> Callable[..., Any]:
        return with_globals(self.function, self.names)

    def __call__(self, *arguments: Any, **constants: Any) -> Any:
        """Run as plain Python; the dims of buffer arguments become known to the body."""
        dims: dict[str, int] = {}
        for parameter, value in zip(self.source.positional, arguments, strict=False):
            if parameter.kind == "buffer":
                bind_dims(parameter, value, dims)
        self.names.update(dims)
        return self.runnable(*arguments, **{**dict(self.constants), **constants})


@dataclass(frozen=True)
class Chain:
    """What fills an Inline hole: steps applied in order, each to the result of the one before.

    The hole is called as `hole(value, *places)`; every step gets the value so far and the same
    places. A step's buffer parameters become buffers of the kernel (see `hole_buffers`). No steps
    mean identity.
    """

    steps: tuple[InlineFunction, ...] = ()


def hole_buffers(hole: str, chain: Chain) -> Iterator[tuple[int, str, Parameter]]:
    """(step, buffer name, parameter with renamed dims) of each buffer that a chain brings.

    Parameter `other: f32[S, N]` of step 1 of hole `epilogue` is buffer `epilogue1_other` with dims
    `epilogue1_S` and `epilogue1_N`.
    """
    for i, step in enumerate(chain.steps):
        for p in step.source.buffers:
            dims = tuple(f"{hole}{i}_{d}" if isinstance(d, str) else d for d in p.dims)
            yield i, f"{hole}{i}_{p.name}", Parameter(p.name, "buffer", p.dtype, dims)


@dataclass(frozen=True)
class KernelFunction:
    """A kernel's source: `specialize` compiles it, calling it runs it as plain Python."""

    function: types.FunctionType

    @property
    def name(self) -> str:
        return self.function.__name__

    @cached_property
    def source(self) -> Source:
        return parse_function(self.function, True, closure_values(self.function))

    @property
    def docstring(self) -> str:
        return self.source.docstring

    def __call__(self, *arguments: Any, tasks: range | None = None, **keywords: Any) -> None:
        """Run on NumPy arrays, in place; the reference of every printer.

        Positional arguments are the arrays and index parameters, keywords the compile-time
        constants and the arrays of hole buffers by name. `tasks` restricts the parallel loop to a
        part of its flattened range. Dims come from the shapes. Raises KernelError on an index out
        of range, on contradicting dims and on dtypes that differ from the annotations.
        """
        positional = self.source.positional
        if len(arguments) != len(positional):
            raise KernelError(
                f"{self.name} takes {len(positional)} arguments, not {len(arguments)}"
            )
        constants = self.constant_values(keywords)
        dims: dict[str, int] = {
            name: value for name, value in constants.items() if type(value) is int
        }
        pairs = zip(positional, arguments, strict=True)
        values = [wrap_argument(p, value, constants, dims) for p, value in pairs]
        for p in self.source.constants:
            if p.kind == "Inline":
                constants[p.name] = bind_chain(p.name, constants[p.name], keywords)
        extra = set(keywords) - set(constants) - used_extras(self.source, constants)
        if extra:
            raise KernelError(f"{self.name}: unknown {extra.pop()!r}")
        names = {**self.function.__globals__, **MEANINGS, **dims, **task_loop(tasks)}
        with np.errstate(all="ignore"):
            with_globals(self.function, names)(*values, **constants)

    def constant_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Compile-time parameters from `given` or their defaults; KernelError if one is missing."""
        values = dict(self.function.__kwdefaults__ or {})
        for p in self.source.constants:
            if p.name in given:
                values[p.name] = given[p.name]
            elif p.name not in values:
                raise KernelError(f"{self.name}: compile-time parameter {p.name!r} is missing")
        return values


def wrap_argument(
    parameter: Parameter, value: Any, constants: Mapping[str, Any], dims: dict[str, int]
) -> Any:
    """A checked Array for a buffer parameter, an int for an index parameter."""
    if parameter.kind == "index":
        return int(value)
    dtype = constants.get(parameter.dtype) or DTYPES.get(parameter.dtype)
    if not isinstance(dtype, DType):
        raise KernelError(f"unknown dtype {parameter.dtype!r}" + nearest(parameter.dtype, DTYPES))
    array = np.asarray(value)
    if array.dtype != dtype.np:
        raise KernelError(f"{parameter.name} is {array.dtype}, not {dtype}")
    wrapped = reference.Array(parameter.name, array)
    bind_dims(parameter, wrapped, dims)
    return wrapped


class BoundChain:
    """A Chain with the arrays of its steps, callable from a kernel's body."""

    def __init__(self, steps: list[tuple[InlineFunction, dict[str, reference.Array]]]) -> None:
        self.steps = steps
        self.extras = {array.name for _, arrays in steps for array in arrays.values()}

    def __call__(self, value: Any, *places: Any) -> Any:
        for step, arrays in self.steps:
            given = iter((value, *places))
            value = step(*(arrays[p.name] if p.kind == "buffer" else next(given)
                           for p in step.source.positional))  # fmt: skip
        return value


def bind_chain(hole: str, chain: Chain, keywords: Mapping[str, Any]) -> BoundChain:
    """Take the arrays of a hole's buffers out of the keywords of a call."""
    if not isinstance(chain, Chain):
        raise KernelError(f"{hole} must be a Chain, not {type(chain).__name__}")
    steps: list[tuple[InlineFunction, dict[str, reference.Array]]] = [(s, {}) for s in chain.steps]
    dims: dict[str, int] = {}
    for i, name, parameter in hole_buffers(hole, chain):
        if name not in keywords:
            raise KernelError(f"the array {name!r} of hole {hole} is missing")
        fixed = dict(chain.steps[i].constants)
        array: reference.Array = wrap_argument(parameter, keywords[name], fixed, dims)
        array.name = name
        steps[i][1][parameter.name] = array
    return BoundChain(steps)


def used_extras(source: Source, constants: Mapping[str, Any]) -> set[str]:
    chains = [constants[p.name] for p in source.constants if p.kind == "Inline"]
    return {name for chain in chains for name in chain.extras}


def task_loop(tasks: range | None) -> dict[str, Any]:
    """`parallel` over a part of the tasks, and `scratch` that is poisoned anew for each task."""
    memory: list[reference.Array] = []

    def scratch(dtype: DType, *dims: int) -> reference.Array:
        memory.append(reference.scratch(dtype, *dims))
        return memory[-1]

    def parallel(*extents: int) -> Iterator[Any]:
        for number, task in enumerate(reference.parallel(*extents)):
            if tasks is None or number in tasks:
                for buffer in memory:
                    reference.poison(buffer.array)
                yield task

    return {"parallel": parallel, "scratch": scratch}


def kernel(function: Callable[..., Any]) -> KernelFunction:
    """Decorator: a function of the kernel language with one parallel loop."""
    assert isinstance(function, types.FunctionType)
    return KernelFunction(function)


def inline(function: Callable[..., Any]) -> InlineFunction:
    """Decorator: a function of the kernel language expanded into its callers."""
    assert isinstance(function, types.FunctionType)
    return InlineFunction(function)
