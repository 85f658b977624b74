"""What a task touches is bounded by intervals that may be too large, never too small."""

from __future__ import annotations

from ondevice.lang.footprint import ANY, Footprint, Interval, Linear, footprint
from ondevice.lang.text import parse_kernel


def of(body: str, parameters: str = "") -> Footprint:
    lines = "\n".join(f"        {line}" for line in body.strip().split("\n"))
    head = f"def k(x: f32[S, 64], i: i32[S], y: f32[S, 64], *, S: index{parameters}):"
    return footprint(parse_kernel(f"{head}\n    for s, b in parallel(S, 4):\n{lines}\n"))


def linear(const: int, **terms: int) -> Linear:
    return Linear(tuple(sorted(terms.items())), const)


def between(low: Linear, high: Linear) -> Interval:
    return Interval(low, high)


ROW = between(linear(0, s=1), linear(0, s=1))
BLOCK = between(linear(0, b=16), linear(15, b=16))


def test_vectors_loops_and_sums_of_task_variables() -> None:
    found = of("store(y, s, b * 16, load(x, s, b * 16, lanes=16))")
    assert found.reads == {"x": {(ROW, BLOCK)}} and found.writes == {"y": {(ROW, BLOCK)}}
    looped = of("for n in range(b * 16, b * 16 + 16, 4):\n    y[s, n] = x[s, n + 1]")
    assert looped.writes == {"y": {(ROW, between(linear(0, b=16), linear(12, b=16)))}}
    assert looped.reads == {"x": {(ROW, between(linear(1, b=16), linear(13, b=16)))}}


def test_quotients_remainders_and_the_lesser_of_two() -> None:
    found = of("y[(s * 4 + 3) // 2, b % 3] = x[min(s, S - 1), 2 - b]")
    ((row, column),) = found.writes["y"]
    assert row == between(linear(1, s=2), linear(1, s=2))
    assert column == between(linear(0), linear(2))
    ((row, column),) = found.reads["x"]
    assert row == Interval(None, linear(0, s=1))
    assert column == between(linear(2, b=-1), linear(2, b=-1))
    ((row, _),) = of("y[s // 2, b] = f32(0.0)").writes["y"]
    assert row == ANY


def test_what_is_not_known_is_the_whole_dimension() -> None:
    loaded = of("row = cast(index, i[s])\ny[row, b] = x[s, b]")
    assert next(iter(loaded.writes["y"]))[0] == ANY
    assert loaded.reads["i"] == {(ROW,)}
    grown = of("n = b * 1\nfor r in range(0, 4, 1):\n    y[s, n] = x[s, b]\n    n = n + 4")
    assert next(iter(grown.writes["y"]))[1] == ANY
    either = of("n = b * 1\nif s < 3:\n    n = b + 7\ny[s, n] = x[s, b]")
    assert next(iter(either.writes["y"]))[1] == ANY
