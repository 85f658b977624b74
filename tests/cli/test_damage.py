"""Damaged checkpoints and bundles, end to end: exit code 1, one line, and what to do."""

from __future__ import annotations

import json
import platform
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Ondevice = Callable[..., subprocess.CompletedProcess[str]]

STORIES = Path(__file__).resolve().parents[2] / "recipes" / "stories260K"
FLOATS = ("--set", "quant.default=f32")


def refused(done: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    for message in messages:
        assert message in done.stderr


# ---- checkpoints ----


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(STORIES, tmp_path / "stories")


def header(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the safetensors header of a checkpoint."""
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + size])
    change(table)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def configure(checkpoint: Path, **keys: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def shift(table: dict[str, Any]) -> None:
    table["model.norm.weight"]["data_offsets"] = [0, 256]


def widen(table: dict[str, Any]) -> None:
    table["model.norm.weight"]["shape"] = [65]


def forget(table: dict[str, Any]) -> None:
    table["model.other.weight"] = table.pop("model.norm.weight")


def cut_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"architectures": [')


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated": (truncate, ("model.safetensors: the file has", "download it again")),
    "empty": (lambda c: (c / "model.safetensors").write_bytes(b""), ("too short to be",)),
    "overlap": (lambda c: header(c, shift), ("overlaps another tensor", "download it again")),
    "size": (lambda c: header(c, widen), ("'model.norm.weight' [65] of f32 needs 260 bytes",)),
    "missing tensor": (lambda c: header(c, forget), ("no tensor 'model.norm.weight' [64]",)),
    "missing file": (lambda c: (c / "model.safetensors").unlink(), ("has neither model.safet",)),
    "architecture": (
        lambda c: configure(c, architectures=["LlamaForCasualLM"]),
        ("did you mean 'LlamaForCausalLM'", "known: LlamaForCausalLM, MistralForCausalLM, Qwen2"),
    ),
    "no architecture": (lambda c: configure(c, architectures=[]), ("must name one architecture",)),
    "unknown key": (lambda c: configure(c, sliding_chunk=7), ("unknown key 'sliding_chunk'",)),
    "other shape": (lambda c: configure(c, hidden_size=128), ("but config.json makes it",)),
    "config": (cut_config, ("config.json: the file is not valid JSON", "download it again")),
    "tokenizer": (lambda c: (c / "tokenizer.json").unlink(), ("has no tokenizer.json; save",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(
    ondevice: Ondevice, checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    make, messages = DAMAGES[damage]
    make(checkpoint)
    refused(ondevice("build", checkpoint, *FLOATS, "--out", tmp_path / "x"), *messages)
    assert [path.name for path in tmp_path.iterdir()] == ["stories"]


# ---- bundles ----


@pytest.fixture
def copy(stories: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stories, tmp_path / "copy")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def run(ondevice: Ondevice, bundle: Path) -> subprocess.CompletedProcess[str]:
    return ondevice("run", bundle, "--prompt", "One day", "--max-tokens", "20")


@pytest.mark.parametrize("at", [64, 4000, -1])
def test_one_flipped_byte_is_found(ondevice: Ondevice, copy: Path, at: int) -> None:
    flip(copy / "weights.bin", at)
    done = ondevice("verify", copy, "--quiet")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "FAILED  weights.bin: bytes 0 to 1050432 have changed\n"


@pytest.mark.parametrize("name", ["weights.bin", "lib/libondevice.so", "manifest.json"])
def test_a_truncated_bundle(ondevice: Ondevice, copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for done in (run(ondevice, copy), ondevice("verify", copy), ondevice("inspect", copy)):
        refused(done, f"{name}", "build or fetch the bundle again")


def test_weights_of_another_program(ondevice: Ondevice, copy: Path, tmp_path: Path) -> None:
    """Same tensors, another context: another program."""
    other = tmp_path / "other"
    ondevice("build", "stories260k", "--set", "context_tokens=128", "--out", other)
    shutil.copyfile(other / "weights.bin", copy / "weights.bin")
    for done in (run(ondevice, copy), ondevice("verify", copy)):
        refused(done, "is packed for program", "this bundle's is", "build the bundle again")
    runner = subprocess.run(
        [copy / "bin" / "ondevice-run", copy, "--tokens", "1,403"], capture_output=True, text=True
    )
    assert (runner.returncode, runner.stdout) == (1, "")
    assert "weights" in runner.stderr


def test_new_weights_need_no_new_library(
    ondevice: Ondevice, stories: Path, checkpoint: Path, copy: Path, tmp_path: Path
) -> None:
    """A fine-tune of the same shapes: the code is the same file, and runs the new weights."""
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    values = np.frombuffer(data[8 + size :], np.float32) * np.float32(1.25)
    path.write_bytes(data[: 8 + size] + values.tobytes())
    tuned = tmp_path / "tuned"
    options = ("--model", checkpoint, "--out", tuned)
    assert ondevice("build", "stories260k", *options).returncode == 0
    for library in (stories / "lib").iterdir():
        assert (tuned / "lib" / library.name).read_bytes() == library.read_bytes()

    for name in ("weights.bin", "manifest.json"):  # what a shipped app would fetch
        shutil.copyfile(tuned / name, copy / name)
    old, new, swapped = (run(ondevice, bundle) for bundle in (stories, tuned, copy))
    assert swapped.returncode == 0, swapped.stderr
    assert swapped.stdout == new.stdout != old.stdout


def test_changed_shapes_are_refused(
    ondevice: Ondevice, stories: Path, copy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    options = ("--set", "quant.default=f16", "--out", other)
    assert ondevice("build", "stories260k", *options).returncode == 0
    shutil.copyfile(other / "weights.bin", copy / "weights.bin")
    refused(run(ondevice, copy), "weights.bin has", "build or fetch the bundle again")
    command = [copy / "bin" / "ondevice-run", copy, "--tokens", "1,403"]  # reads no manifest
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "weights" in done.stderr


def test_a_cpu_that_lacks_what_the_code_needs(stories: Path) -> None:
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs qemu-x86_64 on x86-64")
    command = ["qemu-x86_64", "-cpu", "Nehalem", stories / "bin" / "ondevice-run", stories]
    done = subprocess.run([*command, "--tokens", "1,403"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "this CPU can run none of the " in done.stderr
    assert "variants of stories260k; the least it needs is avx2" in done.stderr
