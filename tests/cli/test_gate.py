"""`eval`, `bench` and the build's report from the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Ondevice = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little dog named Spot. " * 20)
    return path


def test_eval_prints_the_perplexity_alone(ondevice: Ondevice, stories: Path, text: Path) -> None:
    done = ondevice("eval", stories, "--text", text, "--context", "64")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert (words[0], words[2], done.stdout.count("\n")) == ("perplexity", "+-", 1)
    assert 1 < float(words[1]) < 10
    assert "1/" in done.stderr and "s left" in done.stderr


def test_eval_as_json(ondevice: Ondevice, stories: Path, text: Path) -> None:
    arguments = ("--score", "all", "--context", "32", "--max-bytes", "500", "--json")
    figures = json.loads(ondevice("eval", stories, "--text", text, *arguments).stdout)
    assert figures["scored_tokens"] == 31 * figures["windows"]
    assert (figures["score"], figures["context_tokens"]) == ("all", 32)
    assert figures["perplexity"] > 1


def test_eval_refuses_a_short_text_in_one_line(
    ondevice: Ondevice, stories: Path, text: Path
) -> None:
    done = ondevice("eval", stories, "--text", text, "--max-bytes", "20")
    assert (done.returncode, done.stdout) == (1, "")
    assert "less than one window of 512" in done.stderr


def test_bench_prints_the_table(ondevice: Ondevice, stories: Path) -> None:
    done = ondevice("bench", stories, "-p", "8,16", "-n", "4", "-t", "1", "-r", "2")
    assert done.returncode == 0, done.stderr
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert rows[0] == ["model", "size", "params", "threads", "test", "t/s"]
    assert [row[3:5] for row in rows[2:]] == [["1", "pp8"], ["1", "pp16"], ["1", "tg4"]]


def test_bench_as_json(ondevice: Ondevice, stories: Path) -> None:
    done = ondevice("bench", stories, *"-p 0 -n 4 -d 0,8 -t 1,2 -r 2 --json".split())
    rows = json.loads(done.stdout)
    assert [(row["threads"], row["test"]) for row in rows] == [
        *((1, name) for name in ("tg4", "tg4 @ d8")),
        *((2, name) for name in ("tg4", "tg4 @ d8")),
    ]
    assert all(row["tokens_per_second"] > 0 and row["stddev"] >= 0 for row in rows)


@pytest.mark.parametrize("arguments", [["-p", "x"], ["-t", "0"], ["-n", "1,,2"], ["-d", "-1"]])
def test_lists_are_of_numbers(ondevice: Ondevice, stories: Path, arguments: list[str]) -> None:
    assert ondevice("bench", stories, *arguments).returncode == 2


def test_build_reports_every_tensor(ondevice: Ondevice, tmp_path: Path) -> None:
    options = ("--set", "quant.default=int4_g32", "--report", "report.json", "--dump", "dump")
    done = ondevice("build", "stories260k", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layers.*.mlp.down.weight" in done.stderr and "total" in done.stderr
    manifest = json.loads(ondevice("inspect", tmp_path / "stories260k.bundle", "--json").stdout)
    report = json.loads((tmp_path / "report.json").read_text())
    names = [tensor["name"] for tensor in report["tensors"]]
    assert names == [tensor["name"] for tensor in manifest["weights"]["tensors"]]
    assert len((tmp_path / "dump" / "quant.tsv").read_text().splitlines()) == len(names) + 1


def test_a_report_needs_the_whole_build(ondevice: Ondevice, tmp_path: Path) -> None:
    options = ("--dump", tmp_path, "--stop-after", "fold", "--report", "r.json")
    assert ondevice("build", "stories260k", *options).returncode == 2


def test_profile_writes_tables_json_and_a_trace(
    ondevice: Ondevice, stories: Path, tmp_path: Path
) -> None:
    files = ("--json", tmp_path / "p.json", "--trace", tmp_path / "t.json")
    done = ondevice("profile", stories, "-p", "8", "-n", "4", "-t", "1", *files)
    assert done.returncode == 0, done.stderr
    assert "prefill: 8 tokens in 1 steps" in done.stdout
    assert "decode: 4 tokens in 4 steps" in done.stdout
    assert json.loads((tmp_path / "p.json").read_text())["threads"] == 1
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "t.json"]


def test_profile_says_where_it_cannot_write(
    ondevice: Ondevice, stories: Path, tmp_path: Path
) -> None:
    place = tmp_path / "missing" / "p.json"
    done = ondevice("profile", stories, "-p", "2", "-n", "0", "--json", place)
    assert done.returncode == 1 and f"cannot write {place}: No such file" in done.stderr
