"""Parts of the runtime by themselves: rope, elementary functions, sampling, threads, memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from ctypes import POINTER, byref, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def library(internals: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(internals))
    library.od_exp.restype = c_double
    library.od_exp.argtypes = [c_double]
    library.od_cos_sin.argtypes = [c_double, POINTER(c_double), POINTER(c_double)]
    library.od_uniform.restype = c_double
    library.od_uniform.argtypes = [c_uint64, c_uint64]
    library.od_log.restype = c_double
    library.od_log.argtypes = [c_double]
    library.od_threads_open.restype = c_void_p
    library.od_threads_open.argtypes = [c_int32, c_int64]
    library.od_threads_close.argtypes = [c_void_p]
    library.od_threads_settle.argtypes = [c_void_p]
    library.od_threads_prepare.argtypes = [c_void_p, c_void_p, c_int32]
    library.od_threads_run.argtypes = [c_void_p, c_void_p, c_int32]
    return library


# ---- elementary functions and rope ----


def test_exp(library: ctypes.CDLL) -> None:
    x = np.concatenate([np.linspace(-700, 0, 5001), -np.logspace(-18, 2, 500)])
    ours = np.array([library.od_exp(v) for v in x])
    np.testing.assert_allclose(ours, np.exp(x), rtol=5e-16)
    assert library.od_exp(0.0) == 1.0
    assert library.od_exp(-1e30) == library.od_exp(float("-inf")) == 0.0


def test_log(library: ctypes.CDLL) -> None:
    x = np.concatenate([np.linspace(0.5, 3, 2001), np.logspace(-300, 300, 3000), [1.0]])
    ours = np.array([library.od_log(v) for v in x])
    np.testing.assert_allclose(ours, np.log(x), rtol=5e-16, atol=1e-16)
    assert library.od_log(1.0) == 0.0


def test_cos_sin(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    multiples = np.arange(64) * (np.pi / 4)
    x = np.concatenate([rng.uniform(0, 1.3e5, 3000), rng.uniform(-4, 4, 1000), multiples])
    cos, sin = c_double(), c_double()
    for value in x.astype(np.float32).astype(np.float64):
        library.od_cos_sin(value, byref(cos), byref(sin))
        assert abs(cos.value - np.cos(value)) <= 1.2e-16
        assert abs(sin.value - np.sin(value)) <= 1.2e-16


class Rope(ctypes.Structure):
    _fields_ = [("half_dim", c_int32), ("first_inv_freq", c_int32), ("scale", c_float)]


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_rope_rows(scale: float, library: ctypes.CDLL) -> None:
    half = 32
    inv_freq = (10000.0 ** -(np.arange(half) / half)).astype(np.float32)
    positions = np.array([0, 1, 2, 31, 32, 4095, 131071], np.int32)
    out = np.empty((len(positions), 2 * half), np.float32)
    library.od_rope_rows(
        byref(Rope(half, 0, scale)),
        *(inv_freq.ctypes.data_as(c_void_p), positions.ctypes.data_as(c_void_p)),
        *(len(positions), out.ctypes.data_as(c_void_p)),
    )
    angles = (positions[:, None].astype(np.float32) * inv_freq).astype(np.float64)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    np.testing.assert_array_max_ulp(out, expected * np.float32(scale), 1)
    assert np.mean(out == expected * np.float32(scale)) > 0.999


# ---- sampling ----


def test_uniform_is_frozen(library: ctypes.CDLL) -> None:
    """Bundles in the field rely on these numbers: same seed, same text."""

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    for seed, draw in ((0, 0), (1, 0), (2**64 - 1, 12345)):
        bits = mix((mix(seed) + (draw + 1) * 0x9E3779B97F4A7C15) % 2**64)
        assert library.od_uniform(seed, draw) == (bits >> 11) / 2**53


# ---- threads ----

KERNEL = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int32, c_int32, c_void_p)


class Work(ctypes.Structure):
    _fields_ = [
        ("tasks", c_int32),
        ("chunk", c_int32),
        ("launch", c_int32),
        ("barrier", ctypes.c_bool),
        ("each", ctypes.c_bool),
        ("chained", ctypes.c_uint8),
        ("buffer_count", ctypes.c_uint8),
        ("own", c_uint32),
        ("kernel", KERNEL),
        ("buffers", c_void_p),
        ("scalars", c_void_p),
        ("place", c_int64),
        ("prepared", c_uint32 * 4),
    ]


SHAPES = [(10, 3, 0), (4, 1, 0), (7, 100, 1), (0, 1, 0), (0, 1, 1), (5, 2, 1), (1, 1, 0)]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_task_runs_once_and_barriers_hold(threads: int, library: ctypes.CDLL) -> None:
    """Groups between barriers: tasks of a group may mix, groups may not. Lists take turns, and one
    of them changes."""
    ran: list[tuple[int, int]] = []  # append is atomic under Python's own lock

    def kernel(number: int) -> Any:
        def run(buffers: int, scalars: int, begin: int, end: int, scratch: int) -> None:
            ran.extend((number, task) for task in range(begin, end))

        return KERNEL(run)

    def prepared(shapes: list[tuple[int, int, int]]) -> Any:
        work = (Work * len(shapes))()
        for i, (tasks, chunk, barrier) in enumerate(shapes):
            work[i].tasks, work[i].chunk, work[i].barrier = tasks, chunk, bool(barrier)
            work[i].kernel = kernel(i)
        library.od_threads_prepare(pool, ctypes.addressof(work), len(shapes))
        return work

    pool = library.od_threads_open(threads, 100)
    long, short = prepared(SHAPES), prepared([(3, 1, 0)])
    group = np.cumsum([barrier for _, _, barrier in SHAPES])
    for tasks in range(10, 30):
        ran.clear()
        library.od_threads_settle(pool)
        long[0].tasks = tasks
        library.od_threads_prepare(pool, ctypes.addressof(long), len(SHAPES))
        library.od_threads_run(pool, ctypes.addressof(long), len(SHAPES))
        counts = [tasks, *(n for n, _, _ in SHAPES[1:])]
        assert sorted(ran) == [(i, t) for i, n in enumerate(counts) for t in range(n)]
        groups = [group[number] for number, _ in ran]
        assert groups == sorted(groups)
        ran.clear()
        library.od_threads_run(pool, ctypes.addressof(short), 1)
        assert sorted(ran) == [(0, 0), (0, 1), (0, 2)]
    library.od_threads_close(pool)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_chained_tasks_follow_in_the_same_claim(threads: int, library: ctypes.CDLL) -> None:
    """Chains of 40, 30 and 50 tasks by 4, then one that waits: nothing is lost, order holds."""
    shapes = [(40, 4, 2, 0), (30, 9, 0, 0), (50, 1, 0, 0), (3, 1, 0, 1)]
    ran: list[tuple[int, int, int]] = []

    def kernel(number: int) -> Any:
        def run(buffers: int, scalars: int, begin: int, end: int, scratch: int) -> None:
            ran.append((number, begin, end))

        return KERNEL(run)

    work = (Work * len(shapes))()
    for i, (tasks, chunk, chained, barrier) in enumerate(shapes):
        work[i].tasks, work[i].chunk = tasks, chunk
        work[i].chained, work[i].barrier = chained, bool(barrier)
        work[i].kernel = kernel(i)
    pool = library.od_threads_open(threads, 100)
    library.od_threads_prepare(pool, ctypes.addressof(work), len(shapes))
    for _ in range(20):
        ran.clear()
        library.od_threads_run(pool, ctypes.addressof(work), len(shapes))
        longest = sorted((begin, end) for i, begin, end in ran if i == 2)
        assert [t for begin, end in longest for t in range(begin, end)] == list(range(50))
        for begin, end in longest:
            assert begin % 4 == 0  # chunks of the first launch, for all of its chain
            own = [(i, stop) for i, start, stop in ran if start == begin and i < 3]
            assert own == [
                (i, min(end, tasks)) for i, (tasks, *_) in enumerate(shapes[:3]) if begin < tasks
            ]
        assert sum(end - begin for i, begin, end in ran[-3:] if i == 3) == 3
    library.od_threads_close(pool)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_each_worker_has_results_of_its_own(threads: int, library: ctypes.CDLL) -> None:
    """What all read is changed behind each barrier; who claims a task finds what it was before."""
    rounds, tasks, own_offset = 8, 64, 128
    shared = ctypes.c_int32(0)
    found: list[tuple[int, int]] = []

    def copy(buffers: int, scalars: int, begin: int, end: int, scratch: int) -> None:
        assert (begin, end) == (0, 1)
        place = ctypes.cast(buffers, ctypes.POINTER(c_void_p))[1]
        assert place == scratch + own_offset
        c_int32.from_address(place).value = shared.value

    def use(number: int) -> Any:
        def run(buffers: int, scalars: int, begin: int, end: int, scratch: int) -> None:
            place = ctypes.cast(buffers, ctypes.POINTER(c_void_p))[0]
            found.extend([(number, c_int32.from_address(place).value)] * (end - begin))

        return KERNEL(run)

    def change(buffers: int, scalars: int, begin: int, end: int, scratch: int) -> None:
        shared.value += 1

    copied, used = (c_void_p * 2)(0, own_offset), (c_void_p * 1)(own_offset)
    work = (Work * (3 * rounds))()
    for i in range(rounds):
        one, other, last = work[3 * i], work[3 * i + 1], work[3 * i + 2]
        one.tasks, one.chunk, one.barrier, one.each = 1, 1, True, True
        one.own, one.buffer_count, one.kernel = 2, 2, KERNEL(copy)
        one.buffers = ctypes.addressof(copied)
        other.tasks, other.chunk, other.own, other.buffer_count = tasks, 1, 1, 1
        other.kernel, other.buffers = use(i), ctypes.addressof(used)
        last.tasks, last.chunk, last.barrier, last.kernel = 1, 1, True, KERNEL(change)
    pool = library.od_threads_open(threads, 4096)
    library.od_threads_prepare(pool, ctypes.addressof(work), len(work))
    for _ in range(10):
        shared.value = 0
        found.clear()
        library.od_threads_run(pool, ctypes.addressof(work), len(work))
        assert sorted(found) == [(i, i) for i in range(rounds) for _ in range(tasks)]
    library.od_threads_close(pool)


class Turns(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("budget", "resumed", "unit", "opened", "opened_ns")),
        *((name, c_int32) for name in ("used", "unused")),
    ]


def test_turns_end_where_nobody_uses_them(library: ctypes.CDLL) -> None:
    """A core that was taken away is shared until naps go unused; it never runs for long then."""
    library.od_ticks.restype = c_int64
    turns = Turns()
    library.od_turns_open(byref(turns))
    assert turns.budget == 0
    library.od_turns_lost(byref(turns), c_int64(0))
    first = turns.budget
    assert first == 20 * turns.unit > 0  # two milliseconds
    library.od_turns_lost(byref(turns), c_int64(turns.resumed + first // 2))  # lost half way
    assert turns.budget == pytest.approx(first * 3 / 8, rel=1e-3)
    library.od_turns_lost(byref(turns), c_int64(turns.resumed))
    assert turns.budget == 5 * turns.unit
    naps = 0
    while turns.budget != 0 and naps < 1000:
        assert turns.used == 0 or turns.budget > 5 * turns.unit
        library.od_turns_give_way(byref(turns))
        naps += 1
    assert 16 <= naps < 1000


def test_a_thread_keeps_to_a_core(library: ctypes.CDLL) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert [library.od_core_at(i) for i in range(len(allowed) + 1)] == [*allowed, -1]
    kept: list[set[int]] = []

    def keep() -> None:
        library.od_keep_to_core(-1)
        kept.append(os.sched_getaffinity(0))
        library.od_keep_to_core(allowed[-1])
        kept.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    assert kept == [set(allowed), {allowed[-1]}]
    assert os.sched_getaffinity(0) == set(allowed)


# ---- memory ----

TOUCH = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.od_reserve.restype = ctypes.c_void_p
library.od_reserve.argtypes = [ctypes.c_size_t]
bytes, at = int(sys.argv[2]), int(sys.argv[3])
memory = library.od_reserve(bytes)
assert memory % 64 == 0
ctypes.memset(memory + at, 1, 1)
"""


@pytest.mark.parametrize(
    ("at", "inside"), [(0, True), (99_967, True), (99_968, False), (-66_000, False)]
)
def test_guard_pages(at: int, inside: bool, internals: Path) -> None:
    """An overrun of reserved memory (arena, KV, step buffers) is a fault."""
    command = [sys.executable, "-c", TOUCH, str(internals), "99968", str(at)]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode == 0) == inside


# ---- weights that do not fit ----


class Streaming(ctypes.Structure):
    _fields_ = [
        *(("weights", c_void_p), ("bytes", c_int64), ("place", c_int64), ("first", c_int64)),
        ("rest", c_int64 * 16),
    ]


def test_streamed_weights_are_given_back(library: ctypes.CDLL, tmp_path: Path) -> None:
    """Steps that read everything again and again start it; then only the streamed part is dropped
    behind a step, and bytes stay what they are."""
    mib = 1 << 20
    path = tmp_path / "weights"
    data = np.random.default_rng(0).bytes(80 * mib)
    path.write_bytes(data)
    library.od_map_file.restype = c_void_p
    library.od_map_file.argtypes = [c_int32, c_int64, c_int64]
    library.od_is_resident.restype = ctypes.c_bool
    with path.open("rb") as file:
        os.fsync(file.fileno())
        drop = partial(os.posix_fadvise, file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        drop()
        start = library.od_map_file(file.fileno(), 0, len(data))
        if library.od_is_resident(c_void_p(start + 5 * mib)):
            pytest.skip("the file system keeps files in memory")
        streaming = Streaming()
        library.od_streaming_open(byref(streaming), c_void_p(start), c_int64(len(data)))
        for _ in range(3):
            assert streaming.first == len(data)
            library.od_streaming_begin(byref(streaming))
            assert len(os.pread(file.fileno(), 8 * mib, 0)) == 8 * mib
            drop()
            library.od_streaming_end(byref(streaming))
        assert streaming.first < len(data)
        streaming.first = 20 * mib
        mapped = np.ctypeslib.as_array((ctypes.c_uint8 * len(data)).from_address(start))
        assert np.array_equal(mapped, np.frombuffer(data, np.uint8))
        library.od_streaming_begin(byref(streaming))
        streaming.place = len(data)

        def resident(first: int, end: int) -> int:
            """How many of the MiB from `first` on begin in memory."""
            return sum(library.od_is_resident(c_void_p(start + i * mib)) for i in range(first, end))

        deadline = time.monotonic() + 10
        while resident(20, 76) > 48 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert resident(20, 76) <= 48  # it is advice: the system keeps some
        assert resident(0, 20) > 15
        library.od_streaming_end(byref(streaming))
        library.od_streaming_close(byref(streaming))
        assert np.array_equal(mapped, np.frombuffer(data, np.uint8))
