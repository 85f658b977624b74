"""Predicted times: every launch has one, made of what the target's description says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from ondevice import targets
from ondevice.dtypes import f32, i32
from ondevice.lang.kernel_ir import INDEX, Type
from ondevice.lang.work import Operation
from ondevice.passes.instructions import uses
from ondevice.passes.report import predicted_times
from ondevice.passes.times import Demand, Times, starred
from ondevice.passes.traffic import Step, graph_traffic
from ondevice.targets.target import CpuVariant

from .models import CONTEXT, traced

CPU = CONTEXT.target.cpu
SPEED = replace(
    CPU.speed, cores=4, ghz=2.0, l2_bytes_per_cycle=32, last_gb_per_s=10, memory_gb_per_s=20,
    launch_ns=100,
)  # fmt: skip
PROMPT, TOKEN = Step(40), Step(1, 1, 20)


@cache
def times(name: str = "qwen2-int8") -> Times:
    model = traced(name)
    program, kernels = model.program()
    return Times(model.planned(), program, kernels, CPU)


def variant(name: str) -> CpuVariant:
    return next(v for v in CPU.variants if v.name == name)


@pytest.mark.parametrize("step", [PROMPT, TOKEN])
@pytest.mark.parametrize("name", ["qwen2-int8", "llama-tied-f16"])
def test_every_launch_is_predicted_with_its_tile(name: str, step: Step) -> None:
    model = traced(name)
    running = model.program()[0].running(step.sizes)
    nodes = model.planned().nodes
    for one in CPU.variants:
        choices = {choice.on(one.name) for node in nodes for choice in node.choices}
        found = times(name).step(one, step)
        counted: Counter[str] = Counter()
        for launch in found.launches:
            counted[launch.op] += launch.count
            assert launch.demand.us(SPEED, False) > 0
            assert (launch.kernel, launch.tile) in choices
        assert counted == Counter(starred(launch.source) for launch in running)


def test_weights_and_cache_are_what_the_step_reads() -> None:
    model = traced("qwen2-int8")
    moved = graph_traffic(model.planned(), TOKEN)
    found = times().step(CPU.variants[0], TOKEN)
    fresh = sum(one.count * one.demand.fresh_bytes for one in found.launches)
    assert 0.8 * (moved.weights + moved.kv) <= fresh <= moved.weights + moved.kv
    assert not found.from_memory  # a few kilobytes


def test_a_time_is_the_sum_of_its_parts() -> None:
    demand = Demand(8000, 6400, 1000, 0, 4000, 0, claims=8)
    assert demand.parts_ns(SPEED, from_memory=False) == {
        "start": 100,
        "instructions": 8000 / 4 / 2.0,
        "second cache": 6400 / 4 / 32 / 2.0,
        "last cache": (1000 + 4000) / 4 / 10,
        "memory": 0,
    }
    parts = demand.parts_ns(SPEED, from_memory=True)
    assert parts["last cache"] == 1000 / 4 / 10
    assert parts["memory"] == 4000 / 20  # all cores share it
    assert demand.us(SPEED, True) == sum(parts.values()) / 1e3


def test_what_is_fetched_ahead_comes_while_it_computes() -> None:
    late = Demand(8000, 0, 0, 0, 40000, 0, claims=8)
    ahead = replace(late, fresh_ahead_bytes=40000)
    half = replace(late, fresh_ahead_bytes=20000)
    assert late.parts_ns(SPEED, True)["memory"] == 40000 / 20
    assert ahead.parts_ns(SPEED, True)["memory"] == 40000 / 20 - 1000
    assert half.parts_ns(SPEED, True)["memory"] == 20000 / 20
    assert replace(ahead, cycles=16000).parts_ns(SPEED, True)["memory"] == 0


def test_the_busiest_core_decides() -> None:
    whole = Demand(8000, 0, 0, 0, 0, 0, claims=0)  # each worker, for itself
    uneven = replace(whole, claims=5)  # one core takes two of five
    alone = replace(whole, claims=1, fresh_bytes=4000)
    assert whole.parts_ns(SPEED, False)["instructions"] == 4000
    assert uneven.parts_ns(SPEED, False)["instructions"] == pytest.approx(4000 * 2 / 5)
    assert alone.parts_ns(SPEED, True)["memory"] == 4000 / 10  # no more than a core can take


def test_better_variants_take_fewer_cycles_for_a_prompt() -> None:
    predicted = times()
    cycles = [
        sum(one.count * one.demand.cycles for one in predicted.step(v, PROMPT).launches)
        for v in (variant("avx512vnni"), variant("avxvnni"), variant("avx2"))
    ]
    assert cycles == sorted(cycles) and cycles[0] < cycles[-1]


def test_instructions_are_those_of_the_registers() -> None:
    vector = Type(f32, 16)
    wide, narrow = variant("avx512vnni"), variant("avx2")
    neon = targets.load("android-arm64").cpu.variants[-1]
    for row, registers in ((wide, 1), (narrow, 2), (neon, 4)):
        fma = uses(Operation("fma", vector, vector), row)
        assert (fma.vector, fma.multiply) == (registers, registers)
        assert uses(Operation("add", vector, vector), row)[:2] == (registers, 0)
        assert uses(Operation("load", vector, vector), row).load == registers
    dot = Operation("dot4_u7", Type(i32, 16), Type(i32, 16))
    assert [uses(dot, v).vector for v in CPU.variants] == [1, 1, 2, 6]
    assert uses(Operation("round", INDEX, INDEX), wide).vector == 0


def test_the_report_says_what_it_assumed() -> None:
    program, _ = traced("qwen2-int8").program()
    report = predicted_times(times(), program)
    assert report == predicted_times(times(), program)
    assert report["assumed"]["ghz"] == CPU.speed.ghz
    assert report["assumed"]["last_bytes"] == CPU.last_bytes
    assert [row["name"] for row in report["variants"]] == [v.name for v in CPU.variants]
    prompt, *tokens = report["variants"][0]["steps"]
    assert prompt["tokens"] == 64 == program.prefill_chunk_tokens and prompt["depth"] == 0
    assert all(step["tokens"] == 1 and step["depth"] < 64 for step in tokens)
    assert math.isclose(
        prompt["us"],
        sum(row["count"] * row["us"] for row in prompt["launches"])
        + prompt["barriers"] * CPU.speed.barrier_ns / 1e3,
    )
    row = prompt["launches"][0]
    assert set(row) >= {"op", "kernel", "symbol", "tile", "count", "tasks", "us", "bound"}


@pytest.mark.parametrize("name", targets.names()[1:])
def test_every_target_is_described(name: str) -> None:
    cpu = targets.load(name).cpu
    assert 0 < cpu.l1_bytes < cpu.l2_bytes < cpu.last_bytes
    assert cpu.speed.memory_gb_per_s <= cpu.speed.cores * cpu.speed.last_gb_per_s
    assert all(v.vector_pipes >= cpu.speed.multiply_pipes for v in cpu.variants)
