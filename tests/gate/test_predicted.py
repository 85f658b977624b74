"""A build's predicted times, read from its report and moved to the machine that was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ondevice.bundle.read import open_bundle
from ondevice.errors import OndeviceError
from ondevice.gate.predicted import last_cache_bytes, measured_speed, read_predicted
from ondevice.gate.profile import SAMPLING, profile
from ondevice.gate.profile_text import print_report

CEILINGS = {
    "threads": 2,
    "instruction": "AVX2",
    "int8_gop_per_s": 384.0,
    "matrix_instruction": "none",
    "matrix_gop_per_s": 0.0,
    "dram_gb_per_s": 25.0,
    "cached_gb_per_s": 50.0,
}


@pytest.fixture(scope="module")
def table(stories_report: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(stories_report.read_text(encoding="utf-8"))
    return whole


def test_the_speed_is_that_of_the_ceilings(stories_report: Path, table: dict[str, Any]) -> None:
    name = table["predicted"]["variants"][0]["name"]
    described = read_predicted(stories_report, name).speed
    speed = measured_speed(described, CEILINGS)
    assert (speed.cores, speed.ghz) == (2, 3.0)
    assert (speed.last_gb_per_s, speed.memory_gb_per_s) == (25.0, 25.0)
    assert speed.issue == described.issue
    matrix = {"matrix_instruction": "AMX", "matrix_gop_per_s": 16384.0}
    assert measured_speed(described, {**CEILINGS, **matrix}).ghz == 4.0
    unknown = measured_speed(described, {**CEILINGS, "instruction": "none"})
    assert unknown.ghz == described.ghz
    assert last_cache_bytes(1 << 20) > 0


def test_of_the_steps_the_nearest_in_depth(stories_report: Path, table: dict[str, Any]) -> None:
    row = table["predicted"]["variants"][0]
    predicted = read_predicted(stories_report, row["name"])
    prompt, *tokens = row["steps"]
    for step in (prompt, *tokens):
        same = predicted.launch_us(
            step["tokens"], step["depth"] + 1, predicted.speed, predicted.last_bytes
        )
        total = sum(
            one["count"] * same[one["op"], one["symbol"]]
            for one in {(o["op"], o["symbol"]): o for o in step["launches"]}.values()
        )
        assert 0 < total <= step["us"]
    assert predicted.launch_us(prompt["tokens"] + 1, 0, predicted.speed, 0) == {}


def test_a_report_without_predictions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(OndeviceError, match="cannot read"):
        read_predicted(path, "avx2")
    for text in ("{}", "[", '{"predicted": {"assumed": {}, "variants": []}}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(OndeviceError, match="build --report"):
            read_predicted(path, "avx2")


def test_a_profile_shows_predicted_beside_measured(stories: Path, stories_report: Path) -> None:
    tokens = open_bundle(stories).read_program().prefill_chunk_tokens
    report = profile(
        stories, prompt=min(tokens, 512) - 8, generate=4, threads=1, report=stories_report
    )
    prefill, decode = report.phases
    # No step of so many tokens was predicted, but a token was.
    assert not any(row.predicted_ns for row in prefill.rows)
    assert all(row.predicted_ns > 0 for row in decode.rows if row.source != SAMPLING)
    lines = print_report(report).splitlines()
    titles = [line for line in lines if "us / predicted" in line]
    assert len(titles) == 2  # of decode's two tables
    assert decode.figures()["launches"][0]["predicted_ns"] > 0
