"""Floats to integers and scales: activations while a step runs, weights while a bundle is built.

Activations have a scale for each 64, weights a unit for each 256 and, of 4 bits, whole scales and
minima for each 32 in it (`quant/layout.py`). The packers work on 16 rows at a time, one lane a row,
over a transposed copy in worker scratch.
"""

from __future__ import annotations

from ondevice.kernels.activations import store_numbers
from ondevice.kernels.sections import codes_at, section_at
from ondevice.lang import (
    Inline,
    bitcast,
    cast,
    ceildiv,
    f32,
    floor,
    fma,
    i8,
    i32,
    inline,
    kernel,
    load,
    parallel,
    reduce_add,
    reduce_max,
    registers,
    scratch,
    select,
    store,
    u8,
    unroll,
    vec,
)


@kernel
def quantize_rows(
    x: f32[S, K], y: u8[T, G, LINES, BYTES], *, prologue: Inline, staged: bool, tile: int
):
    """A group of 64: its int8 codes, the float32 scale max|x| / 127 and sums of its codes

    Rows that fill up the last tile get scales of 0.
    """
    for s in parallel(T * tile):
        t = s // tile
        m = s % tile
        for g in range(G):
            if s < S:
                values = registers(vec(0.0, 16), 4)
                top = vec(0.0, 16)
                for h in unroll(4):
                    k = g * 64 + h * 16
                    if k < K:
                        value = load(x, s, k, lanes=16, count=K - k)
                        if staged:
                            value = prologue(value, s, k, K - k)
                        values[h] = value
                    top = max(top, abs(values[h]))
                most = reduce_max(top)
                inverse = 127.0 / most if most > 1e-30 else cast(f32, 0.0)
                sums = registers(vec(cast(i32, 0), 16), 2)
                for h in unroll(4):
                    code = cast(i32, round(values[h] * vec(inverse, 16)))
                    store(y, t, g, m, h * 16, bitcast(u8, cast(i8, code)))
                    sums[h // 2] = sums[h // 2] + code
                first = reduce_add(sums[0])
                second = reduce_add(sums[1])
                store_numbers(y, t, g, m, most / 127.0, first, second, tile=tile)
            else:
                zero = cast(i32, 0)
                store_numbers(y, t, g, m, cast(f32, 0.0), zero, zero, tile=tile)


@inline
def transpose_block(xt, x: f32[N, K], b):
    """xt[k, r] = x[16 * b + r, k], zero outside of x"""
    for tile in range(0, ceildiv(K, 64) * 64, 16):  # reads and writes stay within a few lines
        for r in range(16):
            n = b * 16 + r
            if n < N and tile + 16 <= K:
                for i in unroll(16):
                    xt[tile + i, r] = x[n, tile + i]
            else:
                for k in range(tile, tile + 16):
                    if n < N and k < K:
                        xt[k, r] = x[n, k]
                    else:
                        xt[k, r] = cast(f32, 0.0)


@inline
def inverse_of(value):
    """1 / value, and 0 for 0"""
    return select(value != 0.0, 1.0 / value, vec(0.0, 16))


@inline
def word(first, second, third, fourth):
    """i32[16]: four byte codes of each row side by side"""
    return first | (second << 8) | (third << 16) | (fourth << 24)


@inline
def rounded(value, *, least: float, most: float):
    """The nearest whole number within [least, most]"""
    return max(min(round(value), most), least)


@inline
def store_codes(w, b, at, xt, k, inverse, shift, *, bits: int):
    """Codes round(x * inverse + shift) of half a group, four k of a row in a word"""
    most = (1 << bits) - 1.0
    codes = registers(vec(cast(i32, 0), 16), 8)
    for j in unroll(bits):
        for h in unroll(8 // bits):
            for i in unroll(4):
                value = load(xt, k + h * 16 + j * 4 + i, 0, lanes=16)
                code = rounded(fma(value, inverse, shift), least=0.0, most=most)
                codes[h * 4 + i] = cast(i32, code)
        packed = word(codes[0], codes[1], codes[2], codes[3])
        if bits == 4:
            packed = packed | (word(codes[4], codes[5], codes[6], codes[7]) << 4)
        store(w, b, at + j * 64, bitcast(u8, packed))


@inline
def sums_of_codes(sums, xt, k, count, inverse, shift):
    """sums = (codes, codes^2, codes * x) of codes round(x * inverse + shift) of 4 bits"""
    q1 = vec(0.0, 16)
    q2 = vec(0.0, 16)
    xq = vec(0.0, 16)
    for i in range(count):
        value = load(xt, k + i, 0, lanes=16)
        code = rounded(fma(value, inverse, shift), least=0.0, most=15.0)
        q1 = q1 + code
        q2 = fma(code, code, q2)
        xq = fma(value, code, xq)
    sums[0] = q1
    sums[1] = q2
    sums[2] = xq


@inline
def squared_error(sums, bounds, number, scale, minimum):
    """Of scale * code - minimum, without the sum of x * x, which all candidates share"""
    error = scale * (scale * sums[1] - 2.0 * sums[2] - 2.0 * minimum * sums[0])
    return error + minimum * (number * minimum + 2.0 * bounds[2])


@inline
def group_bounds(bounds, xt, k, count):
    """bounds = (least, most, sum) of half a group; 0 lies between the first two"""
    least = vec(0.0, 16)
    most = vec(0.0, 16)
    total = vec(0.0, 16)
    for i in range(count):
        value = load(xt, k + i, 0, lanes=16)
        least = min(least, value)
        most = max(most, value)
        total = total + value
    bounds[0] = least
    bounds[1] = most
    bounds[2] = total


@inline
def fit_floats(fit, xt, k, count, *, steps: int):
    """fit = (scale, minimum, sum, spread and mean of the codes) of half a group

    The least squared error among `steps` tries; the spread is the sum of squares around the mean.
    A try takes codes for steps of range / levels, and solves scale and minimum by least squares,
    the minimum kept at or above 0.
    """
    number = vec(cast(f32, cast(i32, count)), 16)
    bounds = registers(vec(0.0, 16), 3)
    group_bounds(bounds, xt, k, count)
    # Round to nearest where no try has a solution, as in a group of equal elements.
    best = vec(cast(f32, 1e30), 16)
    fit[0] = (bounds[1] - bounds[0]) / 15.0
    fit[1] = -bounds[0]
    fit[2] = bounds[2]
    fit[3] = vec(0.0, 16)
    fit[4] = vec(0.0, 16)
    for c in range(steps):
        levels = vec(13.75 + cast(f32, cast(i32, c)) * (4.0 / steps), 16)
        inverse = inverse_of((bounds[1] - bounds[0]) / levels)
        sums = registers(vec(0.0, 16), 3)
        sums_of_codes(sums, xt, k, count, inverse, -bounds[0] * inverse)
        spread = number * sums[1] - sums[0] * sums[0]
        free = (number * sums[2] - bounds[2] * sums[0]) / spread
        scale = select(spread > 0.0, free, vec(0.0, 16))
        minimum = (scale * sums[0] - bounds[2]) / number
        scale = select(minimum < 0.0, sums[2] * inverse_of(sums[1]), scale)
        minimum = max(minimum, 0.0)
        error = squared_error(sums, bounds, number, scale, minimum)
        better = select(scale > 0.0, error, vec(cast(f32, 1e30), 16)) < best
        best = select(better, error, best)
        fit[0] = select(better, scale, fit[0])
        fit[1] = select(better, minimum, fit[1])
        fit[3] = select(better, spread / number, fit[3])
        fit[4] = select(better, sums[0] / number, fit[4])


@inline
def keep_better(fit, sums, bounds, number, scale, minimum, unit):
    """fit = (error, scale, minimum), if these lose less, in whole numbers of `unit`"""
    error = squared_error(sums, bounds, number, scale * unit, minimum * unit)
    better = error < fit[0]
    fit[0] = select(better, error, fit[0])
    fit[1] = select(better, scale, fit[1])
    fit[2] = select(better, minimum, fit[2])


@inline
def fit_integers(fit, floats, xt, k, count, unit, *, minima: bool):
    """fit = (error, scale, minimum) of half a group in whole numbers of a section's unit

    Tries the scales around `floats`, (scale, minimum, sum). The minimum follows from the codes by
    least squares, and those up to 2 away are tried.
    """
    number = vec(cast(f32, cast(i32, count)), 16)
    bounds = registers(vec(0.0, 16), 3)
    bounds[2] = floats[2]
    inverse = inverse_of(unit)
    near = floor(floats[0] * inverse)
    fit[0] = vec(cast(f32, 1e30), 16)
    for c in unroll(2):
        scale = rounded(near + 1.0 * c, least=1.0, most=16.0)
        sums = registers(vec(0.0, 16), 3)
        if minima:
            by = inverse_of(scale * unit)
            least = scale * 15.0 - 127.0  # what 15 stands for must be an int8 too
            sums_of_codes(sums, xt, k, count, by, max(floats[1] * inverse, least) / scale)
            middle = round((scale * sums[0] - floats[2] * inverse) / number)
            for next in unroll(5):
                minimum = rounded(middle + (1.0 * next - 2.0), least=0.0, most=128.0)
                minimum = max(minimum, least)
                sums_of_codes(sums, xt, k, count, by, minimum / scale)
                keep_better(fit, sums, bounds, number, scale, minimum, unit)
        else:
            zero = select(floats[1] > floats[0] * 7.5, vec(8.0, 16), vec(7.0, 16))
            # Neither end may leave an int8: -8 * 16 does not, 8 * 16 would.
            scale = min(scale, zero + 8.0)
            sums_of_codes(sums, xt, k, count, inverse_of(scale * unit), zero)
            keep_better(fit, sums, bounds, number, scale, scale * zero, unit)


@inline
def store_scales(w, b, at, half, scale, minimum, *, minima: bool):
    """Scale and minimum of a half of a section; the even half of a group comes first"""
    own = cast(i32, scale)
    if minima:
        place = at + 64 + half // 2 * 16
        code = own - 1
        if half % 2 == 1:
            before = cast(i32, load(w, b, place, lanes=16))
            code = before | (code << 4)
        store(w, b, place, cast(u8, code))
        store(w, b, at + 128 + half * 16, cast(u8, cast(i32, minimum)))
    else:
        zero = cast(i32, round(minimum / scale))
        store(w, b, at + 64 + half * 16, cast(u8, (own - 1) | (zero << 4)))


@inline
def fit_section(fits, unit, halves, *, minima: bool):
    """f32[16]: the unit, a little over `unit`, of which scales and minima are nearly multiples

    `fits` holds what `fit_floats` found. Codes taken as they are, the error of a half follows from
    how far its whole scale and minimum are from the floats.
    """
    best = vec(cast(f32, 1e30), 16)
    chosen = unit
    for c in range(32):
        tried = unit * vec(1.0 + cast(f32, cast(i32, c)) * 0.01, 16)
        inverse = inverse_of(tried)
        total = vec(0.0, 16)
        for half in range(halves):
            old = load(fits, half, 0, 0, lanes=16)
            minimum = load(fits, half, 1, 0, lanes=16)
            scale = rounded(old * inverse, least=1.0, most=16.0)
            if minima:
                whole = max(rounded(minimum * inverse, least=0.0, most=128.0), scale * 15.0 - 127.0)
                apart = scale * tried - old
                moved = apart * load(fits, half, 4, 0, lanes=16) - (whole * tried - minimum)
                total = fma(moved * moved, vec(32.0, 16), total)
            else:
                scale = min(scale, select(minimum > old * 7.5, vec(16.0, 16), vec(15.0, 16)))
                apart = scale * tried - old
            total = fma(apart * apart, load(fits, half, 3, 0, lanes=16), total)
        better = total < best
        best = select(better, total, best)
        chosen = select(better, tried, chosen)
    return chosen


@kernel
def pack_nibbles(x: f32[N, K], w: u8[NB, ROW], *, minima: bool, steps: int):
    """x[n, k] ~ unit * (scale * code - minimum), 4-bit codes, in the layout of quant/layout.py

    Scales and minima are fitted as floats first, then as whole numbers of a section's unit.
    """
    xt = scratch(f32, ceildiv(K, 64) * 64, 16)
    fits = scratch(f32, 8, 5, 16)
    for b in parallel(NB):
        transpose_block(xt, x, b)
        for section in range(ceildiv(K, 256)):
            unit = vec(0.0, 16)
            halves = min(8, ceildiv(K, 32) - section * 8)
            for half in range(halves):
                k = section * 256 + half * 32
                floats = registers(vec(0.0, 16), 5)
                if minima:
                    fit_floats(floats, xt, k, min(32, K - k), steps=steps)
                else:
                    fit_centered(floats, xt, k, min(32, K - k), steps=steps)
                    most = 8.0 + floats[1] * inverse_of(floats[0])  # scales that fit_integers takes
                    unit = max(unit, floats[0] / most)
                for i in unroll(5):
                    store(fits, half, i, 0, floats[i])
                top = max(floats[1] / 128.0, (15.0 * floats[0] - floats[1]) / 127.0)
                unit = max(unit, max(top, floats[0] / 16.0))
            unit = fit_section(fits, unit, halves, minima=minima)
            at = section_at(section, bits=4, minima=minima)
            store(w, b, at, unit)
            for half in range(8):
                k = section * 256 + half * 32
                floats = registers(vec(0.0, 16), 3)
                fit = registers(vec(0.0, 16), 3)
                if k < K:
                    for i in unroll(3):
                        floats[i] = load(fits, half, i, 0, lanes=16)
                    count = min(32, K - k)
                    fit_integers(fit, floats, xt, k, count, unit, minima=minima)
                scale = max(fit[1], 1.0)
                store_scales(w, b, at, half, scale, fit[2], minima=minima)
                if k < ceildiv(K, 64) * 64:
                    codes = codes_at(section, half // 2, bits=4, minima=minima) + half % 2 * 256
                    inverse = inverse_of(scale * unit)
                    store_codes(w, b, codes, xt, k, inverse, fit[2] / scale, bits=4)


@inline
def fit_centered(fit, xt, k, count, *, steps: int):
    """fit of half a group around code 7 or 8, as of `fit_floats`; codes are counted from there

    The element of largest magnitude goes to the end that reaches one further; tries range from half
    a step short of that end to well behind it, where outliers are cut. For the codes of each try
    the scale is solved by least squares.
    """
    bounds = registers(vec(0.0, 16), 3)
    group_bounds(bounds, xt, k, count)
    top = max(bounds[1], -bounds[0])
    zero = select(-bounds[0] > bounds[1], vec(8.0, 16), vec(7.0, 16))
    best = vec(0.0, 16)
    best_scale = top / 8.0
    spread = vec(0.0, 16)
    for c in range(steps):
        inverse = vec(8.0 * (0.94 + cast(f32, cast(i32, c)) * (0.32 / steps)), 16) * inverse_of(top)
        sums = registers(vec(0.0, 16), 3)
        sums_of_codes(sums, xt, k, count, inverse, zero)
        number = vec(cast(f32, cast(i32, count)), 16)
        # The same sums with codes counted from `zero`.
        xq = sums[2] - zero * bounds[2]
        q2 = sums[1] - zero * (2.0 * sums[0] - number * zero)
        scale = xq * inverse_of(q2)
        gain = scale * xq  # what this takes from the sum of x * x
        better = gain > best
        best = select(better, gain, best)
        best_scale = select(better, scale, best_scale)
        spread = select(better, q2, spread)
    fit[0] = best_scale
    fit[1] = best_scale * zero
    fit[2] = bounds[2]
    fit[3] = spread
    fit[4] = vec(0.0, 16)


@kernel
def pack_bytes(x: f32[N, K], w: u8[NB, ROW]):
    """x[n, k] ~ unit * (code - 128), 8-bit codes, in the layout of quant/layout.py

    The unit is a 127th of a section's largest magnitude.
    """
    xt = scratch(f32, ceildiv(K, 64) * 64, 16)
    for b in parallel(NB):
        transpose_block(xt, x, b)
        for section in range(ceildiv(K, 256)):
            top = vec(0.0, 16)
            for i in range(min(256, K - section * 256)):
                top = max(top, abs(load(xt, section * 256 + i, 0, lanes=16)))
            unit = top / 127.0
            store(w, b, section_at(section, bits=8, minima=False), unit)
            for half in range(min(8, ceildiv(K, 64) * 2 - section * 8)):
                at = codes_at(section, half // 2, bits=8, minima=False) + half % 2 * 512
                k = section * 256 + half * 32
                store_codes(w, b, at, xt, k, inverse_of(unit), vec(128.0, 16), bits=8)
