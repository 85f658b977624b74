"""The comparison with other runtimes: its clockwork, tables, and files for llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """A function that imports a module as the script and the programs do."""
    places = [str(SCRIPTS), str(SCRIPTS / "peers")]
    sys.path[:0] = places
    yield import_module
    for place in places:
        sys.path.remove(place)


class Clockwork:
    """A peer that takes 2 ms of wall time for a prompt's token and 5 ms for a generated one."""

    def __init__(self, child: ModuleType) -> None:
        self._child = child
        self.wall_s = 0.0

    def now(self) -> Any:
        return self._child.Moment(self.wall_s, 2 * self.wall_s)

    def generate(self, prompt: Sequence[int], count: int) -> tuple[Any, Any]:
        self.wall_s += 0.002 * len(prompt)
        first = self.now()
        self.wall_s += 0.005 * (count - 1)
        return first, self.now()

    def logits(self, window: Sequence[int]) -> Any:
        return np.tile(np.log([0.5, 0.25, 0.125, 0.125]), (len(window), 1))


def test_a_prompt_and_generation_are_timed_apart(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = load("child")
    peer = Clockwork(child)
    monkeypatch.setattr(child, "now", peer.now)
    prefill = child.measure(peer, {"prompt": 100, "generate": 1, "reps": 3})
    assert prefill == pytest.approx({"tokens_per_s": 500, "cpu_s_per_token": 0.004, "reps": 3})
    decode = child.measure(peer, {"prompt": 1, "generate": 101, "reps": 9})
    assert decode == pytest.approx({"tokens_per_s": 200, "cpu_s_per_token": 0.01, "reps": 5})


def test_perplexity_scores_second_halves(load: Any) -> None:
    child = load("child")
    # of each window of 4 only the last token is scored: ln 4 and ln 8
    found = child.perplexity(Clockwork(child), [[0, 0, 0, 1], [1, 1, 1, 3]])
    assert found["scored_tokens"] == 2
    assert found["perplexity"] == pytest.approx(np.sqrt(32))


def test_ratios_are_those_of_rounds(load: Any) -> None:
    table = load("peers.table")
    speeds = {"ondevice": (30, 10, 40), "llama.cpp-q4_0": (10, 10, 10), "openvino": (9, 5, 8)}
    samples = [
        {"model": "15m", "test": "decode 128", "contestant": name, "tokens_per_s": speed}
        for name, values in speeds.items()
        for speed in values
    ]
    (row,) = table.speed_rows(samples, list(speeds))
    assert row == ["15m", "decode 128", "30.0", "10.0", "8.0", "3.00", "llama.cpp-q4_0"]


def test_the_plot_is_xml_with_every_bar(load: Any, tmp_path: Path) -> None:
    plot = load("peers.plot")
    samples = [
        {"model": "15m", "test": "decode 128", "contestant": name, "tokens_per_s": speed}
        for name, speed in (("ondevice", 20.0), ("openvino", 10.0))
    ]
    plot.write(tmp_path / "plot.svg", samples, ["ondevice", "openvino"])
    bars = [
        float(element.attrib["width"])
        for element in ET.parse(tmp_path / "plot.svg").iter("{http://www.w3.org/2000/svg}rect")
        if element.attrib["height"] == str(plot.BAR - 2)
    ]
    assert bars[-2:] == [plot.LENGTH, plot.LENGTH / 2]


def test_gguf_holds_the_checkpoint(load: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    to_gguf = load("to_gguf")
    sizes = "--hidden 64 --layers 1 --heads 4 --kv-heads 2 --inner 96 --vocab 300".split()
    script = SCRIPTS / "random_checkpoint.py"
    subprocess.run([sys.executable, script, "15m", tmp_path / "model", *sizes], check=True)
    to_gguf.write(tmp_path / "model", tmp_path / "model.gguf")
    written = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    source = {name: values for name, _, values in to_gguf.tensors(tmp_path / "model")}
    assert set(written) == {to_gguf.gguf_name(name) for name in source}
    keys = source["model.layers.0.self_attn.k_proj.weight"]
    stored = written["blk.0.attn_k.weight"].data.view(np.uint16)
    # element i of the first half of a head and i of its second half become neighbours
    half = 64 // 4 // 2
    assert np.array_equal(stored[0::2][:half], keys[:half])
    assert np.array_equal(stored[1::2][:half], keys[half : 2 * half])
    norm = written["blk.0.attn_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32 and set(norm.data) == {1.0}


def test_nothing_is_missing_but_named(tmp_path: Path) -> None:
    """Without a network or a cache the script still ends well and says what it lacks."""
    options = ["--models", "smollm2", "--only", "ondevice", "--rounds", "1"]
    places = ["--cache", tmp_path / "cache", "--shared", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench_peers.py", *options, *places],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "give its directory with --shared" in done.stderr
    assert "ondevice on smollm2" in json.loads((tmp_path / "out.json").read_text())["left_out"]
