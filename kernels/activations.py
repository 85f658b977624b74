"""Activations as int8 in groups of 32, as quant/scheme.py lays them out in bytes.

A buffer is [tiles, groups, lines, bytes of a line]. A tile of 16 rows has lines of 64 bytes: two
rows of codes in each, then one of scales, one of offsets and one of totals. A tile of one row has
one line. The first index of a row is its number in the tile, split where part of it is known at
compile time: the addresses of a group's rows then differ by constants.
"""

from __future__ import annotations

from ondevice.lang import bitcast, cast, f32, i8, i32, inline, load, store, vec


@inline
def quad(x, t, g, part, m, k, *, tokens: int):
    """i8[64]: four neighbouring activations of row part * tokens + m, 16 times"""
    line = part * (tokens // 2) + m // 2
    return bitcast(i8, vec(load(x, t, g, line, m % 2 * 32 + k, lanes=1, as_=i32), 16))


@inline
def number(x, t, g, m, which, dtype, *, tile: int):
    """A scale, offset or total (`which`) of the group of row m"""
    if tile == 1:
        value = load(x, t, g, 0, 32 + which * 4, lanes=1, as_=dtype)
    else:
        value = load(x, t, g, tile // 2 + which, m * 4, lanes=1, as_=dtype)
    return value


@inline
def group_unit(x, t, g, m, *, tile: int):
    """The float32 scale of a group"""
    return number(x, t, g, m, 0, f32, tile=tile)


@inline
def group_offset(x, t, g, m, *, zero: int, tile: int):
    """i32[16]: -zero * the sum of a group's codes, for weights whose code of 0 is `zero`"""
    offset = vec(number(x, t, g, m, 1, i32, tile=tile), 16)
    if zero == 8:
        offset = offset >> 4
    return offset


@inline
def group_total(x, t, g, m, *, tile: int):
    """The float32 sum of a group: scale times sum of the codes"""
    return number(x, t, g, m, 2, f32, tile=tile)


@inline
def store_numbers(y, t, g, m, unit, sum, *, tile: int):
    """Scale, offset and total of the group of row m"""
    offset = sum * -128
    total = unit * cast(f32, sum)
    if tile == 1:
        store(y, t, g, 0, 32, unit)
        store(y, t, g, 0, 36, offset)
        store(y, t, g, 0, 40, total)
    else:
        store(y, t, g, tile // 2, m * 4, unit)
        store(y, t, g, tile // 2 + 1, m * 4, offset)
        store(y, t, g, tile // 2 + 2, m * 4, total)
