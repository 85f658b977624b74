"""A profile accounts for every launch of every step. No times are asserted."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ondevice.bundle.read import open_bundle
from ondevice.errors import BundleError, OndeviceError
from ondevice.gate.bench import prompt_s
from ondevice.gate.ceilings import compile_ceilings, measure_ceilings
from ondevice.gate.profile import SAMPLING, Phase, Report, last_step, profile
from ondevice.gate.profile_text import chrome_trace, print_report
from ondevice.runtime.engine import Engine
from ondevice.runtime.profile import Event


@pytest.fixture(scope="module")
def report(stories: Path) -> Report:
    return profile(stories, prompt=40, generate=6, depth=3, threads=2)


@pytest.mark.parametrize("number", [0, 1])
def test_every_launch_runs_in_every_step_that_its_sizes_ask_for(
    stories: Path, report: Report, number: int
) -> None:
    phase = report.phases[number]
    program = open_bundle(stories).read_program()
    expected = {
        n: runs
        for n, launch in enumerate(program.launches)
        if (runs := sum(launch.runs(step.sizes) for step in phase.steps))
    }
    counted = {row.launch: row.runs for row in phase.rows}
    assert counted.pop(len(program.launches)) == len(phase.steps)  # choosing a token
    assert counted == expected
    for row in phase.rows[:-1]:
        assert row.source == program.launches[row.launch].source
        assert row.symbol == program.kernels[program.launches[row.launch].kernel].symbol
    assert phase.rows[-1].source == SAMPLING


def test_phases_are_the_steps_that_were_asked_for(report: Report) -> None:
    prefill, decode = report.phases
    assert [(s.rows, s.logits, s.depth) for s in prefill.steps] == [(40, 1, 3)]
    assert [(s.rows, s.logits, s.depth) for s in decode.steps] == [(1, 1, 3 + n) for n in range(6)]
    assert (prefill.tokens, decode.tokens) == (40, 6)


def test_times_lie_inside_the_wall_clock(report: Report) -> None:
    for phase in report.phases:
        assert all(row.busy_ns > 0 and row.wait_ns >= 0 for row in phase.rows)
        assert phase.outside_ns >= 0


def test_a_token_reads_every_weight_once_and_a_row_of_the_embedding(
    stories: Path, report: Report
) -> None:
    program = open_bundle(stories).read_program()
    sizes = {entry.name: entry.size_bytes for entry in program.weights}
    row = sizes["embed.weight"] // 512
    tied = "head.weight" not in sizes
    expected = sum(sizes.values()) - (0 if tied else sizes["embed.weight"]) + row
    figures = report.phases[1].figures()
    norms = sum(e.size_bytes for e in program.weights if len(e.shape) == 1)
    again = figures["weight_bytes_per_token"] - expected  # several launches may share a norm
    assert 0 <= again <= 2 * norms
    prefill = report.phases[0].figures()
    assert prefill["weight_bytes_per_token"] == (expected + again + 39 * row) / 40


def test_operations_are_two_for_each_weight_of_a_matrix_and_row(
    stories: Path, report: Report
) -> None:
    matrices = [e.shape for e in open_bundle(stories).read_program().weights if len(e.shape) == 2]
    products = sum(n * k for n, k in matrices)  # the embedding's are those of the tied head
    decode = sum(row.operations for row in report.phases[1].rows)
    assert decode == 2 * products * 6


@pytest.mark.parametrize(
    ("kernel", "integer"),
    [("matmul_int", True), ("matmul_plane", True), ("matmul_dequant", False), ("attention", False)],
)
def test_products_of_bytes_are_known(report: Report, kernel: str, integer: bool) -> None:
    assert replace(report.phases[0].rows[0], kernel=kernel).integer is integer


def test_keys_and_values_of_the_steps(stories: Path, report: Report) -> None:
    each = open_bundle(stories).read_program().kv.block_bytes // 32
    positions = sum(4 + n for n in range(6))
    written = 6
    decode = report.phases[1]
    assert sum(row.kv_bytes for row in decode.rows) == each * (positions + written)


def test_barriers_are_those_of_the_launch_table(stories: Path, report: Report) -> None:
    launches = open_bundle(stories).read_program().launches
    decode = report.phases[1]
    ran = [launch for launch in launches if launch.runs(decode.steps[0].sizes)]
    assert 0 < sum(launch.barrier for launch in ran) == decode.barriers_per_step < len(ran)
    inside = sum(launch.barrier and launch.source.startswith("layers.") for launch in ran)
    layers = open_bundle(stories).manifest.model.layers
    assert 0 < decode.barriers_per_layer == inside / layers < decode.barriers_per_step


def test_the_report_as_json_and_text(report: Report) -> None:
    figures = json.loads(json.dumps(report.figures()))
    assert [phase["name"] for phase in figures["phases"]] == ["prefill", "decode"]
    launch = figures["phases"][0]["launches"][0]
    assert set(launch) >= {"op", "kernel", "runs", "busy_ns", "wait_ns", "weight_bytes"}
    assert figures["ceilings"]["threads"] == figures["threads"] == 2
    text = print_report(report)
    assert text.count("all launches") == 4 and "barriers per step" in text
    for line in text.splitlines():
        if line.startswith("| layers.*"):
            assert line.count("|") == 11


def test_the_trace_holds_a_whole_step_of_each_phase(report: Report) -> None:
    trace = json.loads(json.dumps(chrome_trace(report)))
    for number, phase in enumerate(report.phases):
        spans = [e for e in trace["traceEvents"] if e["pid"] == number and e["ph"] == "X"]
        first = Counter(e["name"] for e in spans if e["tid"] == 0 and e["cat"] != "barrier")
        last = phase.steps[-1]
        ran = [row for row in phase.rows if row.source == SAMPLING or _runs(phase, row.launch)]
        assert last.logits == 1
        assert first == Counter(row.source for row in ran)
        assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in spans)


def _runs(phase: Phase, launch: int) -> bool:
    return any(row.launch == launch for row in phase.rows)


def test_the_last_step_of_kept_events() -> None:
    found = np.zeros(7, np.dtype(Event))
    found["worker"] = [0, 0, 0, 0, 1, 1, 1]
    found["launch"] = [2, 3, 0, 2, 2, 0, 3]  # worker 1: the start of a step is no longer kept
    found["arrived_ns"] = [1, 2, 5, 6, 1, 5, 6]
    assert last_step(found)[["worker", "launch"]].tolist() == [(0, 0), (0, 2), (1, 0), (1, 3)]
    idle = found[[2, 3, 4]]  # worker 1 had no part in the last step
    assert last_step(idle)["worker"].tolist() == [0, 0]


def test_refusals(stories: Path) -> None:
    with pytest.raises(OndeviceError, match="needs a context of 513 tokens, the bundle has 512"):
        profile(stories, prompt=512)


def test_a_damaged_launch_table_is_refused(stories: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bundle"
    copy.mkdir()
    for path in stories.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "debug").unlink()
    (copy / "debug").mkdir()
    text = (stories / "debug/program.txt").read_text()
    (copy / "debug/program.txt").write_text(text.replace("barrier", "BARRIER", 1))
    with pytest.raises(BundleError, match="program.txt is damaged"):
        open_bundle(copy).read_program()


def test_ceilings_are_measured(tmp_path: Path) -> None:
    program = compile_ceilings(tmp_path)
    found = measure_ceilings(program, sorted(os.sched_getaffinity(0))[:1])
    assert found["threads"] == 1
    assert found["dram_gb_per_s"] > 0 and found["cached_gb_per_s"] > 0
    assert found["int8_gop_per_s"] > 0 or found["instruction"] == "none"
    assert found["matrix_gop_per_s"] > 0 or found["matrix_instruction"] == "none"


def test_no_worker_counts_in_a_profile_that_is_closed(stories: Path) -> None:
    """Who claimed nothing of a step may still be on its way through it."""
    with Engine(stories, threads=2, conversations=1, draft_tokens=-1) as engine:
        for _ in range(2000):
            with engine.conversation() as conversation, engine.profile(events=100):
                prompt_s(conversation, [1, 2, 3])
