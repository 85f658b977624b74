"""Blocks of 16 rows in groups of 32 integers, as quant/layout.py lays them out in bytes.

A row's header of float32 row scales (and row minima, if affine) is followed by pairs of groups: the
codes of both, four consecutive k of a row side by side, then the scales (and minima) of both.
"""

from __future__ import annotations

from ondevice.lang import cast, f16, f32, i32, inline, load


@inline
def codes_at(g, *, bits: int, affine: bool):
    """Where the codes of group g start in a block of rows"""
    return (128 if affine else 64) + g // 2 * (128 * bits + 64) + g % 2 * (64 * bits)


@inline
def scales_at(g, *, bits: int, affine: bool):
    """Where the scales of group g start in a block of rows"""
    return (128 if affine else 64) + g // 2 * (128 * bits + 64) + 128 * bits + g % 2 * 32


@inline
def group_scale(w, b, at, *, affine: bool):
    """f32[16]: the group's scale of each row, in units of the row's scale"""
    if affine:
        scale = cast(f32, cast(i32, load(w, b, at, lanes=16)))
    else:
        scale = cast(f32, load(w, b, at, lanes=16, as_=f16))
    return scale


@inline
def group_minimum(w, b, at):
    """f32[16]: the group's minimum of each row, in units of the row's minimum"""
    return cast(f32, cast(i32, load(w, b, at + 16, lanes=16)))


@inline
def row_scale(w, b):
    """f32[16]: the scale of each row"""
    return load(w, b, 0, lanes=16, as_=f32)


@inline
def row_minimum(w, b):
    """f32[16]: the unit of each row's group minima"""
    return load(w, b, 64, lanes=16, as_=f32)
