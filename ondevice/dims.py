"""Sizes that are known only when a step runs: linear forms in named symbols, rounded up.

An `Extent` is `mul * ceil((sum(coefficient * symbol) + const) / div)`. That is all the arithmetic
the executor does on sizes, so shapes stay dynamic without recompiling or padding to buckets.

Symbols of a step: `S` query tokens, `L` rows whose logits are wanted, `B` rows of the block table,
`P` blocks of the KV pool, `T` spans of the KV cache that the deepest query token sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

SYMBOLS = ("S", "L", "B", "P", "T")


@dataclass(frozen=True)
class Extent:
    """`mul * ceil((sum(terms) + const) / div)`; `terms` is sorted by symbol, without zeros."""

    terms: tuple[tuple[str, int], ...] = ()
    const: int = 0
    div: int = 1
    mul: int = 1

    @staticmethod
    def of(value: int | str | Extent) -> Extent:
        """An integer, a symbol's name, or an Extent as it is."""
        if isinstance(value, Extent):
            return value
        if isinstance(value, str):
            if value not in SYMBOLS:
                raise ValueError(f"unknown symbol {value!r}; the symbols are {', '.join(SYMBOLS)}")
            return Extent(((value, 1),))
        return Extent((), int(value))

    @property
    def static(self) -> int | None:
        """The value where no symbol occurs, else None."""
        return None if self.terms else self.evaluate({})

    def evaluate(self, values: Mapping[str, int]) -> int:
        total = self.const
        for symbol, coefficient in self.terms:
            total += coefficient * values[symbol]
        return self.mul * -(-total // self.div)

    def __mul__(self, factor: int) -> Extent:
        if self.div == 1:
            terms = tuple((s, c * factor) for s, c in self.terms)
            return Extent(terms if factor else (), self.const * factor, 1, self.mul)
        return Extent(self.terms, self.const, self.div, self.mul * factor)

    __rmul__ = __mul__

    def __add__(self, other: int | str | Extent) -> Extent:
        other = Extent.of(other)
        if (self.div, self.mul, other.div, other.mul) != (1, 1, 1, 1):
            raise ValueError(f"{self} + {other} is not a linear form")
        total = dict(self.terms)
        for symbol, coefficient in other.terms:
            total[symbol] = total.get(symbol, 0) + coefficient
        terms = tuple(sorted((s, c) for s, c in total.items() if c))
        return Extent(terms, self.const + other.const)

    def ceildiv(self, divisor: int) -> Extent:
        """`ceil(self / divisor)`; exact for static extents and for plain linear forms."""
        if divisor == 1:
            return self
        if self.static is not None:
            return Extent.of(-(-self.static // divisor))
        if (self.div, self.mul) != (1, 1):
            raise ValueError(f"ceil({self} / {divisor}) is not a linear form rounded up once")
        return Extent(self.terms, self.const, divisor, self.mul)

    def __str__(self) -> str:
        parts = [s if c == 1 else f"{c}*{s}" for s, c in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        text = "+".join(parts)
        if self.div != 1:
            text = f"ceil(({text})/{self.div})"
        return text if self.mul == 1 else f"{self.mul}*{text}"

    @staticmethod
    def parse(text: str) -> Extent:
        """The inverse of `str`. Raises ValueError on anything `str` does not print."""
        text = text.strip()
        outer = re.fullmatch(r"(?:(\d+)\*)?ceil\(\(([^()]*)\)/(\d+)\)", text)
        if outer:
            inner = Extent.parse(outer[2])
            return replace(inner, div=int(outer[3]), mul=int(outer[1] or 1))
        total = Extent()
        for part in text.split("+"):
            match = re.fullmatch(r"(?:(-?\d+)\*)?([A-Z])|(-?\d+)", part)
            if not match:
                raise ValueError(f"not an extent: {text!r}")
            total += (
                Extent.of(int(match[3])) if match[3] else Extent.of(match[2]) * int(match[1] or 1)
            )
        return total
