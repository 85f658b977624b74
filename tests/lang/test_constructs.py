"""Every construct of the kernel language, compiled for each CPU, equals the plain-Python run."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.codegen.loaded import run_kernel
from ondevice.lang import (
    Chain,
    DType,
    Inline,
    bitcast,
    cast,
    ceildiv,
    f16,
    f32,
    fma,
    i8,
    i32,
    index,
    inline,
    kernel,
    load,
    parallel,
    reduce_add,
    registers,
    scratch,
    store,
    u8,
    unroll,
    vec,
)
from ondevice.lang.kernel_ir import For, If, walk_statements
from ondevice.lang.specialize import specialize


def random(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@inline
def add(value, s, n, count, other: f32[S, N]):
    return value + load(other, s, n, lanes=16, count=count)


@inline
def scaled(value, s, n, count, *, factor: float):
    return value * factor


@kernel
def gemv(
    x: f32[S, K],
    w: f32[NB, K, 16],
    y: f32[S, N],
    *,
    prologue: Inline,
    epilogue: Inline,
    rows: int,
    staged: bool,
):
    """y = epilogue(x @ w): 16 columns of w interleaved."""
    xs = scratch(f32, K)
    for s, b in parallel(S, ceildiv(NB, rows)):
        acc = registers(vec(0.0, 16), rows)
        if staged:
            for k in range(K):
                xs[k] = prologue(x[s, k], s, k, K - k)
        for k in range(K):
            value = xs[k] if staged else x[s, k]
            for r in unroll(rows):
                block = load(w, min(b * rows + r, NB - 1), k, 0, lanes=16)
                acc[r] = fma(vec(value, 16), block, acc[r])
        for r in unroll(rows):
            n = (b * rows + r) * 16
            if n < N:
                store(y, s, n, epilogue(acc[r], s, n, N - n), count=N - n)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_gemv_with_holes(same_bits, rows, staged, static):
    x, w, y = random(3, 24), random(4, 24, 16), np.zeros((3, 52), np.float32)
    constants = {
        "prologue": Chain((scaled.bind(factor=0.3),)) if staged else Chain(),
        "epilogue": Chain((add, scaled.bind(factor=2.0), add)),
        "rows": rows,
        "staged": staged,
    }
    dims = {"K": 24}
    if static:
        dims |= {"NB": 4, "N": 52, "epilogue0_S": "S", "epilogue0_N": "N", "epilogue2_N": 52}
    extras = {"epilogue0_other": random(3, 52), "epilogue2_other": -random(3, 52)}
    (_, _, out) = same_bits(gemv, [x, w, y], constants, dims, extras=extras)
    factor = 0.3 if staged else 1
    plain = np.einsum("sk,bkn->sbn", x * factor, w).reshape(3, 64)[:, :52]
    wanted = (plain + extras["epilogue0_other"]) * 2 + extras["epilogue2_other"]
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_unused_code_is_pruned():
    constants = {"prologue": Chain(), "epilogue": Chain(), "rows": 2, "staged": False}
    made = specialize(gemv, {"K": 8, "NB": 2, "N": 32}, constants)
    assert made.scalars == ("S",)
    assert made.scratch_bytes == 64  # declared, so it counts
    loops = [s for s in walk_statements(made.body) if isinstance(s, For)]
    assert [loop.name for loop in loops] == ["k"]


def test_chain_buffers_follow_the_kernels_own():
    constants = {"prologue": Chain(), "epilogue": Chain((add,)), "rows": 1, "staged": False}
    dims = {"K": 8, "NB": "epilogue0_N"}
    made = specialize(gemv, dims, constants)
    assert [b.name for b in made.buffers] == ["x", "w", "y", "epilogue0_other"]
    assert made.buffers[3].dims == ("epilogue0_S", "epilogue0_N")
    assert made.scalars == ("S", "epilogue0_N", "N", "epilogue0_S")


@kernel
def control(x: f32[N], y: f32[N], positions: i32[T], limit: index, *, flag: bool = True):
    """Branches, reassignment, nested loops, run-time bounds, scalar and vector state."""
    half = N // 2
    for t in parallel(T):
        position = index(positions[t])
        total = cast(f32, 0.0)
        best = vec(-1.0, 4)
        steps = 0
        for i in range(position, min(N, position + limit), 2):
            value = x[i]
            if value > 0.0 and i + 1 < N:
                total += value * x[i + 1]
                best = max(best, vec(value, 4))
            elif value < -1.0 or not i > half:
                total -= 1.0
            else:
                for j in range(2):
                    total = total + cast(f32, j) * 0.5
            steps += 1
        shown = x[position + steps] if position + steps < N else -total
        y[t] = total + shown if flag else shown
        y[T + t] = reduce_add(best) * cast(f32, steps % 7) / 3.0


@pytest.mark.parametrize("limit", [0, 1, 9, 100])
def test_control_flow(same_bits, limit):
    x, y = random(40), np.zeros(40, np.float32)
    positions = np.array([0, 3, 11, 20, 39], np.int32)
    same_bits(control, [x, y, positions], {"flag": True}, scalars=(limit,))
    same_bits(control, [x, y, positions], {}, {"N": 40, "T": 5}, scalars=(limit,))


@kernel
def three(x: f32[A, B, C], y: f32[A, B, C]):
    for a, b, c in parallel(A, B, C):
        y[a, b, c] = x[a, b, c] * cast(f32, (a * B + b) * C + c)


def test_three_extents_and_parts(same_bits, features):
    x = random(2, 3, 5)
    same_bits(three, [x, np.zeros_like(x)])
    same_bits(three, [x, np.zeros_like(x)], dims={"A": 2, "B": 3, "C": 5})
    made, whole, parts = specialize(three, {}, {}), np.zeros_like(x), np.zeros_like(x)
    three(x, whole)
    for tasks in (range(20, 30), range(7), range(7, 7), range(7, 20)):
        run_kernel(made, [x, parts], features, tasks=tasks)
    assert parts.tobytes() == whole.tobytes()
    some = np.zeros_like(x)
    three(x, some, tasks=range(4, 6))
    assert np.count_nonzero(some) == 2


@kernel
def copy_some(x: a[N], y: a[N], counts: i32[T], *, a: DType, lanes: int):
    for t in parallel(T):
        n = t * lanes
        count = index(counts[t])
        value = load(x, n, lanes=lanes, count=count)
        store(y, n, value, count=count - 1)


@pytest.mark.parametrize("lanes", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("dtype", [f32, i32, f16, i8, u8], ids=str)
def test_counted_memory(same_bits, dtype, lanes):
    counts = np.array([-5, 0, 1, 2, lanes - 1, lanes, lanes + 1, 1000], np.int32)
    x = np.arange(1, 8 * lanes + 1).astype(dtype.np)
    same_bits(copy_some, [x, np.full_like(x, 9), counts], {"a": dtype, "lanes": lanes})


@kernel
def packed(w: u8[R, 40], y: f32[R, 16], z: u8[R, 64], word: i32[R]):
    """A row holds 32 nibbles, 8 bytes apart two halves of scales, and an int."""
    for r in parallel(R):
        scale = cast(f32, load(w, r, 32, lanes=1, as_=f16))
        both = cast(f32, load(w, r, 32, lanes=2, as_=f16))
        q = load(w, r, 0, lanes=16)
        value = cast(f32, cast(i32, q & 15) - 8) * vec(scale, 16)
        store(y, r, 0, value + vec(reduce_add(both), 16))
        word[r] = load(w, r, 36, lanes=1, as_=i32)
        store(z, r, 0, cast(f32, cast(i32, q >> 4)))
        store(z, r, 60, load(w, r, 3, lanes=4), count=3)
        four = bitcast(u8, vec(load(w, r, 1, lanes=1, as_=i32), 4))
        store(z, r, 40, bitcast(i8, four))


def test_reinterpreting_memory(same_bits, features):
    if "f16c" not in features:
        pytest.skip("halves need f16c")
    rng = np.random.default_rng(5)
    w = rng.integers(0, 256, (3, 40), np.uint8)
    w[:, 32:36] = rng.standard_normal((3, 2)).astype(np.float16).view(np.uint8)
    y, z = np.zeros((3, 16), np.float32), np.zeros((3, 64), np.uint8)
    same_bits(packed, [w, y, z, np.zeros(3, np.int32)])


@inline
def normalize(value, count, other: f32[S, N], *, steps: int = 2):
    """Reassigns its parameter, loops, shadows the caller's names."""
    acc = vec(0.0, 16)
    for n in range(count):  # noqa: B007
        acc += value
    value = acc * 0.5
    for i in unroll(steps):
        value += load(other, i, 0, lanes=16)
    return value


@inline
def emit(y: f32[R, 16], row, value):
    store(y, row, 0, value)


@kernel
def nested(x: f32[R, 16], y: f32[R, 16]):
    for n in parallel(R):
        acc = load(x, n, 0)
        once = normalize(acc, 3, x)
        emit(y, n, normalize(once, 2, x, steps=1) - acc)


def test_inline_calls_are_hygienic(same_bits):
    same_bits(nested, [random(4, 16), np.zeros((4, 16), np.float32)])


@kernel
def grid(x: f32[R, 16], y: f32[4, 6, 16]):
    for r in parallel(R):
        acc = registers(load(x, r, 0), 2, 3)
        for i in unroll(2):
            for j in unroll(3):
                acc[i, j] += vec(cast(f32, i * 3 + j), 16)
                if i == j:
                    acc[i, j] = acc[i, j] * 2.0
        for i in unroll(2):
            for j in unroll(3):
                store(y, r, i * 3 + j, 0, acc[i, j])


def test_registers_of_two_dims(same_bits):
    same_bits(grid, [random(4, 16), np.zeros((4, 6, 16), np.float32)])
    made = specialize(grid, {}, {})
    assert not [s for s in walk_statements(made.body) if isinstance(s, (For, If))]


def test_strided_arrays_in_the_reference():
    x, y = random(10, 32)[::2, 1::2], np.zeros((5, 16), np.float32)
    nested(x, y)
    z = np.zeros((5, 16), np.float32)
    nested(np.ascontiguousarray(x), z)
    assert y.tobytes() == z.tobytes()
