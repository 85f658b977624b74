"""Activations as int8 in groups of 64, as quant/scheme.py lays them out in bytes.

A buffer is [tiles, groups, lines, bytes of a line]. A tile of 16 rows has lines of 64 bytes: the
codes of a row in each, then one of scales, two of sums of halves and one of offsets. A tile of one
row has one line.
"""

from __future__ import annotations

from ondevice.lang import bitcast, cast, f32, i8, i32, inline, load, store, vec


@inline
def quad(x, t, g, m, k):
    """i8[64]: four neighbouring activations of row m of a tile, 16 times"""
    return bitcast(i8, vec(load(x, t, g, m, k, lanes=1, as_=i32), 16))


@inline
def number(x, t, g, m, which, dtype, *, tile: int):
    """A scale, sum or offset (`which`) of the group of row m"""
    if tile == 1:
        value = load(x, t, g, 0, 64 + which * 4, lanes=1, as_=dtype)
    else:
        value = load(x, t, g, tile + which, m * 4, lanes=1, as_=dtype)
    return value


@inline
def group_unit(x, t, g, m, *, tile: int):
    """The float32 scale of a group"""
    return number(x, t, g, m, 0, f32, tile=tile)


@inline
def half_sum(x, t, g, m, half, *, tile: int):
    """The sum of the codes of a half of a group, as float32"""
    return number(x, t, g, m, 1 + half, f32, tile=tile)


@inline
def group_offset(x, t, g, m, *, tile: int):
    """i32[16]: -128 * the sum of a group's codes, for weights that stand 128 above their meaning"""
    return vec(number(x, t, g, m, 3, i32, tile=tile), 16)


@inline
def store_numbers(y, t, g, m, unit, first, second, *, tile: int):
    """Scale, sums of halves and offset of the group of row m"""
    offset = (first + second) * -128
    if tile == 1:
        store(y, t, g, 0, 64, unit)
        store(y, t, g, 0, 68, cast(f32, first))
        store(y, t, g, 0, 72, cast(f32, second))
        store(y, t, g, 0, 76, offset)
    else:
        store(y, t, g, tile, m * 4, unit)
        store(y, t, g, tile + 1, m * 4, cast(f32, first))
        store(y, t, g, tile + 2, m * 4, cast(f32, second))
        store(y, t, g, tile + 3, m * 4, offset)
