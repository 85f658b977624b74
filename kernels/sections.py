"""Blocks of 16 rows in sections of 256 integers, as quant/layout.py lays them out in bytes.

A section's header is followed by the codes of up to four groups of 64, four consecutive k of a row
side by side. Codes of 4 bits have a scale and a minimum, whole numbers, for each half of a group.
"""

from __future__ import annotations

from ondevice.lang import cast, f32, i32, inline, load


@inline
def header_bytes(*, bits: int, minima: bool):
    """Of a section"""
    return 64 if bits == 8 else (256 if minima else 192)


@inline
def section_at(section, *, bits: int, minima: bool):
    """Where a section starts in a block of rows"""
    return section * (512 * bits + header_bytes(bits=bits, minima=minima))


@inline
def codes_at(section, q, *, bits: int, minima: bool):
    """Where the codes of group q of a section start in a block of rows"""
    header = header_bytes(bits=bits, minima=minima)
    return section_at(section, bits=bits, minima=minima) + header + q * (128 * bits)


@inline
def row_units(w, b, section, *, bits: int, minima: bool):
    """f32[16]: what 1 stands for in each row of a section"""
    return load(w, b, section_at(section, bits=bits, minima=minima), lanes=16, as_=f32)


@inline
def half_scale(w, b, section, q, half, *, minima: bool):
    """i32[16]: the scale of half a group of 4-bit codes, 1 to 16"""
    at = section_at(section, bits=4, minima=minima) + 64
    if minima:
        scale = load(w, b, at + q * 16, lanes=16) >> (4 * half)
    else:
        scale = load(w, b, at + (q * 2 + half) * 16, lanes=16)
    return cast(i32, (scale & 15) + 1)


@inline
def half_base(w, b, section, q, half, *, minima: bool):
    """i32[16]: the minimum of half a group, 0 to 128; without minima the code of its 0"""
    at = section_at(section, bits=4, minima=minima) + 64
    if minima:
        base = load(w, b, at + 64 + (q * 2 + half) * 16, lanes=16)
    else:
        base = load(w, b, at + (q * 2 + half) * 16, lanes=16) >> 4
    return cast(i32, base)


@inline
def half_minimum(w, b, section, q, half, *, minima: bool):
    """i32[16]: what half a group's values are above, 0 to 128"""
    base = half_base(w, b, section, q, half, minima=minima)
    return base if minima else base * half_scale(w, b, section, q, half, minima=minima)
