"""The commands on the bundled model, end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ondevice.passes import PASS_NAMES

Ondevice = Callable[..., subprocess.CompletedProcess[str]]


def test_run_prints_the_continuation_alone(ondevice: Ondevice, stories: Path) -> None:
    done = ondevice("run", stories, "--prompt", "Once upon a time", "--max-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(", there was a little girl named Lily.")
    assert "tokens" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(stories: Path) -> None:
    command = f"{sys.executable} -P -m ondevice run {stories} --prompt Once | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (" ", "")


def test_a_full_context_is_said(ondevice: Ondevice, stories: Path) -> None:
    done = ondevice("run", stories, "--prompt", "Once", "--max-tokens", "600")
    assert done.returncode == 1
    assert len(done.stdout) > 1000
    assert "the context is 512" in done.stderr


def test_same_seed_same_text(ondevice: Ondevice, stories: Path) -> None:
    def story(seed: int) -> str:
        arguments = ("--max-tokens", "40", "--temperature", "1", "--seed", str(seed))
        return ondevice("run", stories, "--prompt", "Tom", *arguments).stdout

    assert story(1) == story(1) != story(2)


def test_inspect(ondevice: Ondevice, stories: Path) -> None:
    text = ondevice("inspect", stories).stdout
    assert "stories260k for linux-x86_64" in text
    assert "lib/libondevice.so" in text
    manifest = json.loads(ondevice("inspect", stories, "--json").stdout)
    assert manifest["model"]["vocab_size"] == 512


def test_verify(ondevice: Ondevice, stories: Path, tmp_path: Path) -> None:
    done = ondevice("verify", stories)
    assert (done.returncode, done.stderr) == (0, "")
    copy = shutil.copytree(stories, tmp_path / "copy.bundle")
    weights = bytearray((copy / "weights.bin").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.bin").write_bytes(weights)
    done = ondevice("verify", copy)
    assert done.returncode == 1
    assert "FAILED  weights.bin: bytes 0 to" in done.stdout


def test_two_builds_give_the_same_bytes(ondevice: Ondevice, stories: Path, tmp_path: Path) -> None:
    again = Path(ondevice("build", "stories260k", cwd=tmp_path).stdout.splitlines()[-1])
    assert again == tmp_path / "stories260k.bundle"
    for path in stories.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(stories)).read_bytes() == path.read_bytes(), path


def test_passes_off_tell_the_same_story(ondevice: Ondevice, stories: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.bundle"
    disable = "passes.disable=" + ",".join(PASS_NAMES)
    assert ondevice("build", "stories260k", "--set", disable, "--out", plain).returncode == 0
    fast, slow = (ondevice("run", bundle, "--prompt", "One day") for bundle in (stories, plain))
    assert fast.returncode == 0
    assert fast.stdout == slow.stdout


def test_dump_shows_the_stages(ondevice: Ondevice, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    done = ondevice("build", "stories260k", "--dump", dump, "--stop-after", "fuse", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in dump.iterdir())
    assert names[0] == "00-trace.graph"
    assert names[-1].endswith("-fuse.graph")
    assert not (tmp_path / "stories260k.bundle").exists()


def test_demo_builds_once_and_tells_by_seed(
    ondevice: Ondevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONDEVICE_CACHE_DIR", str(tmp_path))
    first, again, other = (ondevice("demo", "--seed", seed) for seed in ("1", "1", "2"))
    assert first.stdout.startswith("Once upon a time")
    assert "Building" in first.stderr and "Building" not in again.stderr
    assert first.stdout == again.stdout != other.stdout
