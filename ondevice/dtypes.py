"""Element types: the one table that every IR, file format and printer reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DType:
    """One element type.

    `numpy` is the NumPy name, or None where NumPy has no such type (bf16). `index` is the kernel
    language's signed integer for positions; its width is the target's business, never a file's.
    """

    name: str
    bits: int
    kind: str  # "float", "int", "uint", "bool", "index"
    numpy: str | None

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def np(self) -> np.dtype[np.generic]:
        if self.numpy is None:
            raise TypeError(f"NumPy has no element type for {self.name}")
        return np.dtype(self.numpy)

    def __repr__(self) -> str:
        return self.name


f32 = DType("f32", 32, "float", "float32")
f16 = DType("f16", 16, "float", "float16")
bf16 = DType("bf16", 16, "float", None)
i8 = DType("i8", 8, "int", "int8")
u8 = DType("u8", 8, "uint", "uint8")
i16 = DType("i16", 16, "int", "int16")
u16 = DType("u16", 16, "uint", "uint16")
i32 = DType("i32", 32, "int", "int32")
u32 = DType("u32", 32, "uint", "uint32")
i64 = DType("i64", 64, "int", "int64")
boolean = DType("bool", 8, "bool", "bool")
index = DType("index", 64, "index", "int64")

DTYPES: dict[str, DType] = {
    t.name: t for t in (f32, f16, bf16, i8, u8, i16, u16, i32, u32, i64, boolean, index)
}
