"""Floats to groups of 32 integers: activations while a step runs, weights while a bundle is built."""
# mypy: ignore-errors

from __future__ import annotations

from ondevice.lang import (
    Inline,
    bitcast,
    cast,
    ceildiv,
    f16,
    f32,
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
def quantize_rows(x: f32[S, K], y: u8[S, G, 40], *, prologue: Inline, staged: bool):
    """A group of 32: its int8 codes, the float32 scale max|x| / 127, the int32 sum of its codes"""
    for s in parallel(S):
        for g in range(G):
            values = registers(vec(0.0, 16), 2)
            for h in unroll(2):
                k = g * 32 + h * 16
                if k < K:
                    value = load(x, s, k, lanes=16, count=K - k)
                    if staged:
                        value = prologue(value, s, k, K - k)
                    values[h] = value
            top = reduce_max(max(abs(values[0]), abs(values[1])))
            inverse = 127.0 / top if top > 1e-30 else cast(f32, 0.0)
            first = cast(i32, round(values[0] * vec(inverse, 16)))
            second = cast(i32, round(values[1] * vec(inverse, 16)))
            store(y, s, g, 0, bitcast(u8, cast(i8, first)))
            store(y, s, g, 16, bitcast(u8, cast(i8, second)))
            store(y, s, g, 32, top / 127.0)
            store(y, s, g, 36, reduce_add(first + second))


@inline
def word(first, second, third, fourth):
    """i32[16]: four byte codes of each row side by side"""
    return first | (second << 8) | (third << 16) | (fourth << 24)


@kernel
def pack_affine(x: f32[N, K], w: u8[NB, ROW], *, steps: int):
    """x[n, k] ~ scale * code - minimum, code 0..15, in the layout of quant/layout.py

    One lane is one row. For each group `steps` scales around (max - min) / 15 are tried; for the
    codes each gives, scale and minimum are solved by least squares, and the pair with the least
    squared error is kept. Both are then rounded to 8 bits against the row's largest.
    """
    xt = scratch(f32, ceildiv(K, 32) * 32, 16)
    scales = scratch(f32, ceildiv(K, 32), 16)
    minima = scratch(f32, ceildiv(K, 32), 16)
    for b in parallel(NB):
        for r in range(16):
            n = b * 16 + r
            for k in range(ceildiv(K, 32) * 32):
                if n < N and k < K:
                    xt[k, r] = x[n, k]
                else:
                    xt[k, r] = cast(f32, 0.0)
        most_scale = vec(0.0, 16)
        most_minimum = vec(0.0, 16)
        for g in range(ceildiv(K, 32)):
            count = min(32, K - g * 32)
            number = vec(cast(f32, cast(i32, count)), 16)
            least = vec(0.0, 16)
            most = vec(0.0, 16)
            total = vec(0.0, 16)
            for k in range(count):
                value = load(xt, g * 32 + k, 0, lanes=16)
                least = min(least, value)
                most = max(most, value)
                total = total + value
            best = vec(cast(f32, 1e30), 16)
            best_scale = vec(0.0, 16)
            best_minimum = vec(0.0, 16)
            for c in range(steps):
                levels = 13.75 + cast(f32, cast(i32, c)) * 0.25
                trial = (most - least) / vec(levels, 16)
                inverse = select(trial > 0.0, 1.0 / trial, vec(0.0, 16))
                q1 = vec(0.0, 16)
                q2 = vec(0.0, 16)
                xq = vec(0.0, 16)
                for k in range(count):
                    value = load(xt, g * 32 + k, 0, lanes=16)
                    code = max(min(round((value - least) * inverse), 15.0), 0.0)
                    q1 = q1 + code
                    q2 = fma(code, code, q2)
                    xq = fma(value, code, xq)
                spread = number * q2 - q1 * q1
                scale = select(spread > 0.0, (number * xq - total * q1) / spread, vec(0.0, 16))
                minimum = (scale * q1 - total) / number
                alone = select(q2 > 0.0, xq / q2, vec(0.0, 16))
                scale = select(minimum < 0.0, alone, scale)
                minimum = max(minimum, 0.0)
                # The squared error without the sum of x * x, which all candidates share.
                error = scale * (scale * q2 - 2.0 * xq - 2.0 * minimum * q1)
                error = error + minimum * (number * minimum + 2.0 * total)
                better = select(scale > 0.0, error, vec(cast(f32, 1e30), 16)) < best
                best = select(better, error, best)
                best_scale = select(better, scale, best_scale)
                best_minimum = select(better, minimum, best_minimum)
            store(scales, g, 0, best_scale)
            store(minima, g, 0, best_minimum)
            most_scale = max(most_scale, best_scale)
            most_minimum = max(most_minimum, best_minimum)
        row_scale = most_scale / 255.0
        row_minimum = most_minimum / 255.0
        per_scale = select(row_scale > 0.0, 1.0 / row_scale, vec(0.0, 16))
        per_minimum = select(row_minimum > 0.0, 1.0 / row_minimum, vec(0.0, 16))
        store(w, b, 0, row_scale)
        store(w, b, 64, row_minimum)
        for g in range(ceildiv(K, 32)):
            at = 128 + g * 288
            scale = min(round(load(scales, g, 0, lanes=16) * per_scale), 255.0)
            minimum = min(round(load(minima, g, 0, lanes=16) * per_minimum), 255.0)
            store(w, b, at + 256, cast(u8, cast(i32, scale)))
            store(w, b, at + 272, cast(u8, cast(i32, minimum)))
            scale = scale * row_scale
            minimum = minimum * row_minimum
            inverse = select(scale > 0.0, 1.0 / scale, vec(0.0, 16))
            codes = registers(vec(cast(i32, 0), 16), 8)
            for j in unroll(4):
                for h in unroll(2):
                    for i in unroll(4):
                        value = load(xt, g * 32 + h * 16 + j * 4 + i, 0, lanes=16)
                        code = max(min(round((value + minimum) * inverse), 15.0), 0.0)
                        codes[h * 4 + i] = cast(i32, code)
                low = word(codes[0], codes[1], codes[2], codes[3])
                high = word(codes[4], codes[5], codes[6], codes[7])
                store(w, b, at + j * 64, bitcast(u8, low | (high << 4)))


@kernel
def pack_symmetric(x: f32[N, K], w: u8[NB, ROW], *, bits: int, steps: int):
    """x[n, k] ~ scale * (code - zero), zero = 2^(bits - 1), in the layout of quant/layout.py

    One lane is one row. The element of largest magnitude goes to the negative end, which reaches
    one further. For each group `steps` scales around that are tried; for the codes each gives, the
    scale is solved by least squares, and the one with the least squared error is kept, as float16
    against the row's largest.
    """
    zero = 1 << (bits - 1)
    xt = scratch(f32, ceildiv(K, 32) * 32, 16)
    scales = scratch(f32, ceildiv(K, 32), 16)
    for b in parallel(NB):
        for r in range(16):
            n = b * 16 + r
            for k in range(ceildiv(K, 32) * 32):
                if n < N and k < K:
                    xt[k, r] = x[n, k]
                else:
                    xt[k, r] = cast(f32, 0.0)
        most_scale = vec(0.0, 16)
        for g in range(ceildiv(K, 32)):
            extreme = vec(0.0, 16)
            for k in range(32):
                value = load(xt, g * 32 + k, 0, lanes=16)
                extreme = select(abs(value) > abs(extreme), value, extreme)
            best = vec(0.0, 16)
            best_scale = vec(0.0, 16)
            for c in range(steps):
                # From half a step short of the end to well behind it, where outliers are cut.
                end = cast(f32, zero) * (0.94 + cast(f32, cast(i32, c)) * 0.02)
                inverse = select(extreme != 0.0, vec(-end, 16) / extreme, vec(0.0, 16))
                q2 = vec(0.0, 16)
                xq = vec(0.0, 16)
                for k in range(32):
                    value = load(xt, g * 32 + k, 0, lanes=16)
                    code = max(min(round(value * inverse), zero - 1.0), -1.0 * zero)
                    q2 = fma(code, code, q2)
                    xq = fma(value, code, xq)
                scale = select(q2 > 0.0, xq / q2, vec(0.0, 16))
                # What this removes from the sum of x * x.
                gain = scale * xq
                better = gain > best
                best = select(better, gain, best)
                best_scale = select(better, scale, best_scale)
            store(scales, g, 0, best_scale)
            most_scale = max(most_scale, abs(best_scale))
        per_scale = select(most_scale > 0.0, 1.0 / most_scale, vec(0.0, 16))
        store(w, b, 0, most_scale)
        for g in range(ceildiv(K, 32)):
            at = 64 + g * (64 * bits + 32)
            half = cast(f16, load(scales, g, 0, lanes=16) * per_scale)
            store(w, b, at + 64 * bits, half)
            scale = cast(f32, half) * most_scale
            inverse = select(scale != 0.0, 1.0 / scale, vec(0.0, 16))
            codes = registers(vec(cast(i32, 0), 16), 8)
            for j in unroll(bits):
                for h in unroll(8 // bits):
                    for i in unroll(4):
                        value = load(xt, g * 32 + h * 16 + j * 4 + i, 0, lanes=16)
                        code = max(min(round(value * inverse), zero - 1.0), -1.0 * zero)
                        codes[h * 4 + i] = cast(i32, code) + zero
                packed = word(codes[0], codes[1], codes[2], codes[3])
                if bits == 4:
                    packed = packed | (word(codes[4], codes[5], codes[6], codes[7]) << 4)
                store(w, b, at + j * 64, bitcast(u8, packed))
