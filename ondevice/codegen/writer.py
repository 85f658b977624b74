"""Lines of one LLVM function: fresh names, blocks, and reuse of equal pure instructions."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ondevice.dtypes import DType
from ondevice.lang.kernel_ir import Const, Type

_ELEMENTS = {"f32": "float", "f16": "half", "bool": "i1", "index": "i64"}
_SUFFIXES = {"float": "f32", "half": "f16"}


def element_type(dtype: DType) -> str:
    return _ELEMENTS.get(dtype.name, f"i{dtype.bits}")


def llvm_type(type: Type) -> str:
    element = element_type(type.dtype)
    return element if type.lanes == 1 else f"<{type.lanes} x {element}>"


def intrinsic_suffix(type: Type) -> str:
    """The overload suffix of an intrinsic's name: v16f32, f32, v64i8."""
    element = element_type(type.dtype)
    element = _SUFFIXES.get(element, element)
    return element if type.lanes == 1 else f"v{type.lanes}{element}"


def scalar_text(dtype: DType, value: int | float | bool) -> str:
    """A number as LLVM writes it; floats by their bits."""
    if dtype.kind == "bool":
        return "true" if value else "false"
    if dtype.name == "f16":
        return f"0xH{np.float16(value).view(np.uint16):04X}"
    if dtype.kind == "float":
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    return str(value)


def constant_text(const: Const) -> str:
    text = scalar_text(const.type.dtype, const.value)
    if const.type.lanes == 1:
        return text
    return f"splat ({element_type(const.type.dtype)} {text})"


class Writer:
    """The body of a function under construction.

    `pure` returns the earlier result where an equal instruction was written in a block that
    dominates this one; instructions are equal when their text is, for their operands are SSA names.
    """

    def __init__(self, features: frozenset[str]) -> None:
        self.features = features
        self.lines: list[str] = []
        self.slots: list[str] = []
        self.block = "entry"
        self.scopes: list[dict[str, str]] = [{}]
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def label(self) -> str:
        self.count += 1
        return f"b{self.count}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def enter(self, label: str) -> None:
        self.block = label
        self.lines.append(f"{label}:")

    def reserve(self, count: int) -> int:
        """Leave `count` lines to be filled later; the position of the first."""
        self.lines.extend([""] * count)
        return len(self.lines) - count

    def fresh(self, instruction: str) -> str:
        """Write an instruction; its result's name."""
        name = self.name()
        self.line(f"{name} = {instruction}")
        return name

    def pure(self, instruction: str) -> str:
        """As `fresh`, for an instruction whose result depends on nothing but its text."""
        for scope in self.scopes:
            if instruction in scope:
                return scope[instruction]
        name = self.fresh(instruction)
        self.scopes[-1][instruction] = name
        return name

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is written inside does not dominate what follows."""
        self.scopes.append({})
        yield
        self.scopes.pop()

    def slot(self, type: str) -> str:
        """A place on the stack, in the entry block."""
        name = self.name()
        self.slots.append(f"  {name} = alloca {type}, align 4")
        return name

    def shuffle(self, type: str, a: str, b: str, lanes: list[int]) -> str:
        """`shufflevector` of two vectors of `type`."""
        picks = ", ".join(f"i32 {i}" for i in lanes)
        return self.pure(f"shufflevector {type} {a}, {type} {b}, <{len(lanes)} x i32> <{picks}>")
