"""Instructions that an operation of a kernel takes on a CPU variant, by the pipes they go to.

The counts are those of the lowerings in `codegen/operators.py` and `codegen/dot.py`; what these
compute of weights alone is left out, for all rows of a tile share it.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import NamedTuple

from ondevice.lang.work import Operation
from ondevice.targets.target import CpuVariant

# Of 16 sums of four products each: features, best first, then by operation how many instructions,
# and how many of them multiply.
DOTS: tuple[tuple[str, dict[str, tuple[int, int]]], ...] = (
    ("avx512vnni", {"dot4": (1, 1), "dot4_u7": (1, 1), "dot4_i8": (8, 4)}),
    ("avxvnni", {"dot4": (2, 2), "dot4_u7": (2, 2), "dot4_i8": (8, 4)}),
    ("avx2", {"dot4": (12, 8), "dot4_u7": (6, 4), "dot4_i8": (8, 4)}),
    ("i8mm", {"dot4": (4, 4), "dot4_u7": (4, 4), "dot4_i8": (4, 4)}),
    ("dotprod", {"dot4": (4, 4), "dot4_u7": (4, 4), "dot4_i8": (4, 4)}),
    ("neon", {"dot4": (32, 8), "dot4_u7": (16, 8), "dot4_i8": (16, 8)}),
)
FREE = {"bitcast", "iota", "low", "high", "join"}  # of whole registers
DIVIDE = 4  # division and square root keep their pipe about so long
MATRIX_CYCLES = 32  # of a product by the matrix unit: 16 to multiply, 16 to store and wait for it


class Uses(NamedTuple):
    """Instructions on each kind of pipe, `multiply` among `vector` ones.

    `matrix` is in cycles, in which nothing else runs.
    """

    vector: float = 0
    multiply: float = 0
    load: float = 0
    store: float = 0
    scalar: float = 0
    matrix: float = 0

    def plus(self, other: Uses, times: float) -> Uses:
        return Uses(*(a + b * times for a, b in zip(self, other, strict=True)))


def uses_of(operations: Counter[Operation], variant: CpuVariant) -> Uses:
    """All of them together."""
    total = Uses()
    for operation, count in operations.items():
        total = total.plus(uses(operation, variant), count)
    return total


@cache
def uses(operation: Operation, variant: CpuVariant) -> Uses:
    """The instructions of one operation."""
    name, type, source = operation
    registers = -(-type.bits // variant.vector_bits)
    widest = -(-max(type.bits, source.bits) // variant.vector_bits)
    if name == "dot_tile":
        return Uses(load=2 * 16, matrix=MATRIX_CYCLES)
    if name in ("load", "prefetch"):
        return Uses(load=registers if name == "load" else 1)
    if name == "store":
        return Uses(store=registers)
    if name == "round":
        return Uses(scalar=2)  # add, compare and branch in one
    if name in FREE:
        return Uses()
    if name.startswith("dot4"):
        return Uses(*_dot(name, variant))
    if name.startswith("reduce"):
        steps = source.lanes.bit_length() - 1
        return Uses(vector=2 * steps + widest - 1)
    multiplies = type.dtype.kind == "float" and name in ("mul", "fma")
    if type.lanes == 1 and source.lanes == 1:
        return Uses(1, int(multiplies)) if type.dtype.kind == "float" else Uses(scalar=1)
    if name in ("div", "sqrt"):
        return Uses(DIVIDE * registers, DIVIDE * registers)
    if name in ("shl", "shr") and type.dtype.bits == 8 and variant.has("avx2"):
        return Uses(vector=2 * registers)  # shifts 16 bits and clears what came across
    return Uses(widest, widest if multiplies else 0)


def _dot(name: str, variant: CpuVariant) -> tuple[int, int]:
    for feature, costs in DOTS:
        if variant.has(feature):
            return costs[name]
    return 128, 64  # widened, one product after the other
