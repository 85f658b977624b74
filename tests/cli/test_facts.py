"""`targets`, `recipes`, `doctor`, `inspect` and `verify`: what they say is so."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ondevice import targets
from ondevice.cli.doctor import Finding, _variants
from ondevice.gate.predict import Prediction, predict, read_config
from ondevice.recipe import bundled_config, bundled_recipes, load_recipe
from ondevice.targets import detect

Ondevice = Callable[..., subprocess.CompletedProcess[str]]

SMOLLM2 = Path(__file__).resolve().parents[3] / "shared" / "models" / "SmolLM2-135M-Instruct"


def test_targets(ondevice: Ondevice) -> None:
    table = json.loads(ondevice("targets", "--json").stdout)
    assert [row["name"] for row in table["targets"]] == targets.names()[1:]
    assert table["host"] == targets.load("host").name
    text = ondevice("targets").stdout
    assert f"{table['host']} (host): " in text
    assert "planned: ios-arm64" in text


def test_recipes_predict_every_target(ondevice: Ondevice) -> None:
    rows = json.loads(ondevice("recipes", "--json").stdout)
    names = [(row["recipe"], row["target"]) for row in rows]
    assert names == [(r, t) for r in bundled_recipes() for t in targets.names()[1:]]
    text = ondevice("recipes", "llama-7b", "--target", "android-arm64").stdout.splitlines()
    assert len(text) == 2
    assert text[1].split()[:4] == ["llama-7b", "android-arm64", "6,738,415,616", "4,096"]
    assert "did you mean 'llama-7b'" in ondevice("recipes", "lama-7b").stderr


@pytest.mark.parametrize("settings", [(), ("quant.default=int4_g32", "context_tokens=64")])
def test_a_prediction_is_what_the_build_becomes(
    ondevice: Ondevice, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    done = ondevice("build", "stories260k", *options, "--out", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    (row,) = json.loads(
        ondevice("recipes", "stories260k", "--target", "host", *options, "--json").stdout
    )
    assert row["weights_bytes"] == manifest["weights"]["size_bytes"]
    assert row["step_bytes"] == manifest["program"]["step_bytes"]
    blocks = -(-manifest["model"]["context_tokens"] // 32)
    assert row["kv_bytes"] == blocks * manifest["program"]["kv_block_bytes"]
    built = sum(path.stat().st_size for path in (tmp_path / "x").rglob("*") if path.is_file())
    assert 0 <= row["bundle_bytes"] - built < 1_000_000
    assert row["parameters"] == 260_032


def test_a_few_layers_predict_the_memory_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first one, one between, and the last, which computes only the rows that are wanted."""

    def step(layers: int) -> Prediction:
        config = read_config(bundled_config("tinyllama-1.1b")) | {"num_hidden_layers": layers}
        return predict(load_recipe("tinyllama-1.1b"), config, "linux-x86_64")

    two, many = step(2), step(22)
    assert many.kv_bytes == 11 * two.kv_bytes
    assert many.weights_bytes > 7 * two.weights_bytes / 2
    monkeypatch.setattr("ondevice.gate.predict.LAYERS", 22)
    assert many == step(22)
    assert many.step_bytes == step(3).step_bytes == step(4).step_bytes


def test_shapes_are_those_of_the_checkpoint() -> None:
    if not SMOLLM2.is_dir():
        pytest.skip(f"{SMOLLM2} is not here")
    true = json.loads((SMOLLM2 / "config.json").read_text())
    ours = read_config(bundled_config("smollm2-135m-instruct"))
    assert ours.items() <= true.items()


def test_doctor_finds_this_machine_well(ondevice: Ondevice) -> None:
    done = ondevice("doctor", "--json")
    findings = {row["subject"]: row for row in json.loads(done.stdout)}
    unwell = [row for row in findings.values() if row["remedy"] and "free" not in row["remedy"]]
    assert unwell == []
    assert targets.load("host").name in findings["runs"]["found"]
    assert "compiles" in findings["llvmlite"]["found"]
    assert "ok   ziglang" in ondevice("doctor").stdout


def test_doctor_says_what_to_do(ondevice: Ondevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDEVICE_CACHE_DIR", "/proc/ondevice")
    done = ondevice("doctor")
    assert done.returncode == 1
    assert "FIX  cache" in done.stdout
    assert "-> let ONDEVICE_CACHE_DIR name a directory that can be written" in done.stdout


def test_doctor_on_a_cpu_that_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "host_features", lambda: frozenset({"fma"}))
    *_, last = _variants()
    least = targets.load("host").cpu.variants[-1]
    assert last.subject == "runs" and last.remedy
    assert last.found.startswith("nothing: this CPU lacks ")
    assert set(last.found.split("lacks ")[1].split()) == set(least.features) - {"fma"}
    monkeypatch.setattr(detect, "host_features", lambda: frozenset(least.features))
    *_, last = _variants()
    assert last == Finding("runs", f"bundles for {targets.load('host').name}, variant {least.name}")


def test_inspect_lists_tensors_and_kernels(ondevice: Ondevice, stories: Path) -> None:
    manifest = json.loads((stories / "manifest.json").read_text())
    text = ondevice("inspect", stories, "--tensors", "--kernels").stdout
    for tensor in manifest["weights"]["tensors"]:
        assert f"{tensor['name']} " in text
    for kernel in manifest["program"]["kernels"]:
        assert f"\n  {kernel}\n" in text
    launches = manifest["program"]["launches"]
    assert f"{launches} launches of {len(manifest['program']['kernels'])} kernels" in text


@pytest.mark.parametrize("name", ["lib/libondevice.so", "bin/ondevice-run", "include/ondevice.h"])
def test_verify_reads_code_too(
    ondevice: Ondevice, stories: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(stories, tmp_path / "x")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    done = ondevice("verify", copy, "--quiet")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"FAILED  {name}: its bytes have changed\n"
