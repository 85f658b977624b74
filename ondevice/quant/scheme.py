"""SCHEMES: how the elements of a tensor are stored, one frozen row each.

A matrix [N, K] is packed in blocks of 16 rows, so that one vector lane is one output row and a
worker reads one stream; `quant/layout.py` says what the bytes mean. Vectors (norm weights, biases)
are kept as plain f32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ondevice.dims import Extent
from ondevice.dtypes import DType, f16, f32, u8
from ondevice.errors import RecipeError, nearest
from ondevice.graph.ops import ACTIVATION_GROUP

ROW_BLOCK = 16
PLAIN = ""  # the scheme of unpacked row-major f32
SECTION = 256  # columns that share a f32 unit for each row
_GROUPS = SECTION // ACTIVATION_GROUP

# Quantized activations of so many rows lie together: the codes of a group of all, 64 int8 a row,
# then their f32 scales, the sums of the codes of each half as f32, and of both as int32 times -128.
ACTIVATION_TILE = 16
_NUMBERS = 4  # of a row's group, behind the codes


@dataclass(frozen=True)
class Scheme:
    """One row. `bits` is the width of a code; `group_size` is 0 where elements have no scale.

    Of 4 bits, `minima` says that groups have a minimum each; else a group's 0 is the code 7 or 8.
    """

    name: str
    bits: int
    group_size: int = 0
    minima: bool = False

    @property
    def dtype(self) -> DType:
        """Element type of the packed buffer."""
        return u8 if self.group_size else {32: f32, 16: f16}[self.bits]

    @property
    def layout(self) -> str:
        return "sections16" if self.group_size else "rows16"

    @property
    def header_bytes(self) -> int:
        """Of a section of 16 rows: their f32 units, then the groups' scales and minima."""
        units = 4 * ROW_BLOCK
        if self.bits == 8:
            return units
        return units + (3 if self.minima else 2) * _GROUPS * ROW_BLOCK

    @property
    def code_bytes(self) -> int:
        """Of the codes of 16 rows that meet one group of activations."""
        return ROW_BLOCK * ACTIVATION_GROUP * self.bits // 8

    def packed_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of the packed buffer of a matrix [rows, columns]."""
        blocks = -(-rows // ROW_BLOCK)
        if not self.group_size:
            return (blocks, columns, ROW_BLOCK)
        sections, groups = -(-columns // SECTION), activation_groups(columns)
        return (blocks, sections * self.header_bytes + groups * self.code_bytes)

    def packed_bytes(self, rows: int, columns: int) -> int:
        """Size of the packed matrix, padding included."""
        return math.prod(self.packed_shape(rows, columns)) * self.dtype.bytes


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("f32", 32),
        Scheme("f16", 16),
        Scheme("int8_g256", 8, SECTION),
        Scheme("int4_g32_sym", 4, 32),
        Scheme("int4_g32", 4, 32, minima=True),
    )
}


def scheme_named(name: str) -> Scheme:
    """The row called `name`. Raises RecipeError with the nearest name."""
    if name not in SCHEMES:
        raise RecipeError(f"unknown quantization scheme {name!r}{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def is_integer(scheme: str) -> bool:
    """Whether a tensor of this scheme is stored as integers with scales."""
    return scheme in SCHEMES and SCHEMES[scheme].group_size > 0


def activation_groups(columns: int) -> int:
    """Groups of a row of activations; the last may be filled up with zeros."""
    return -(-columns // ACTIVATION_GROUP)


def activation_shape(rows: Extent, columns: int, tile: int) -> tuple[Extent, ...]:
    """The packed buffer of quantized activations f32[rows, columns], `tile` rows together.

    A tile's group is [lines, bytes of a line]: lines of 64 bytes for 16 rows, one for a single row.
    """
    bytes_ = tile * (ACTIVATION_GROUP + 4 * _NUMBERS)
    lines = bytes_ // 64 if tile == ACTIVATION_TILE else 1
    shape = activation_groups(columns), lines, bytes_ // lines
    return rows.ceildiv(tile), *map(Extent.of, shape)


def activation_bytes(rows: Extent, columns: int) -> Extent:
    """Room for quantized activations f32[rows, columns], however many rows lie together."""
    row = math.prod(d.static or 0 for d in activation_shape(rows, columns, 1)[1:])
    return (rows + (ACTIVATION_TILE - 1)) * row
