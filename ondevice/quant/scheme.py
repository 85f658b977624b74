"""SCHEMES: how the elements of a tensor are stored, one frozen row each.

A matrix [N, K] is packed in blocks of 16 rows, so that one vector lane is one output row and a
worker reads one stream. Vectors (norm weights, biases) are kept as plain f32.
"""

from __future__ import annotations

from dataclasses import dataclass

from ondevice.dtypes import DType, f16, f32
from ondevice.errors import RecipeError, nearest

ROW_BLOCK = 16
PLAIN = ""  # the scheme of unpacked row-major f32


@dataclass(frozen=True)
class Scheme:
    """One row: element `dtype` of the packed buffer and the layout that `quant.layout` packs."""

    name: str
    bits: float  # per weight, scales included, before padding
    dtype: DType
    layout: str

    def packed_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of the packed buffer of a matrix [rows, columns]."""
        return (-(-rows // ROW_BLOCK), columns, ROW_BLOCK)


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("f32", 32, f32, "rows16"),
        Scheme("f16", 16, f16, "rows16"),
    )
}


def scheme_named(name: str) -> Scheme:
    """The row called `name`. Raises RecipeError with the nearest name."""
    if name not in SCHEMES:
        raise RecipeError(f"unknown quantization scheme {name!r}{nearest(name, SCHEMES)}")
    return SCHEMES[name]
