"""Checkpoints by name: what is fetched, what is fetched again, and what is said when it fails."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import file_download

from ondevice.checkpoint.hub import fetch
from ondevice.checkpoint.open import open_checkpoint
from ondevice.errors import CheckpointError
from ondevice.progress import Progress

from .hub_server import COMMIT, HubServer, serve

REPO = "ondevice-tests/stories"
STORIES = Path(__file__).resolve().parents[2] / "recipes" / "stories260K"
UNWANTED = ("pytorch_model.bin", "consolidated.safetensors", "README.md", "onnx/model.onnx")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    files = {path.name: path.read_bytes() for path in STORIES.iterdir()}
    files |= dict.fromkeys(UNWANTED, b"x" * 20000)
    with serve(HubServer(REPO, files)) as server:
        yield server


@pytest.fixture
def sharded(hub: HubServer) -> HubServer:
    """Two shards of random bytes: enough for what does not read them."""
    shards = {f"model-{i}-of-2.safetensors": random.Random(i).randbytes(300_000) for i in (1, 2)}
    index = {"weight_map": {name.split(".")[0]: name for name in shards}}
    del hub.files["model.safetensors"]
    hub.files |= shards
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    return hub


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits a second before each retry."""
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.delenv("HF_TOKEN", raising=False)


class Heard(Progress):
    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self._step = ""

    def begin(self, step: str, total: int, unit: str, done: int = 0) -> None:
        self._step = step
        self.steps[step] = [done, total]

    def advance(self, amount: int) -> None:
        self.steps[self._step][0] += amount


def get(hub: HubServer, cache: Path, name: str = REPO, progress: Progress | None = None) -> Path:
    return fetch(name, progress or Heard(), endpoint=hub.endpoint, cache=cache)


def test_it_fetches_what_a_build_reads_and_no_more(hub: HubServer, tmp_path: Path) -> None:
    heard = Heard()
    path = get(hub, tmp_path, progress=heard)
    wanted = {name for name in hub.files if name not in (*UNWANTED, "LICENSE.MIT")}
    assert {file.name for file in path.iterdir()} == wanted
    for name in wanted:
        assert (path / name).read_bytes() == hub.files[name]
        assert hub.sent[name] == len(hub.files[name])
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.architecture == "LlamaForCausalLM"
    size = len(hub.files["model.safetensors"])
    assert heard.steps == {"model.safetensors": [size, size]}


def test_it_fetches_only_once(hub: HubServer, tmp_path: Path) -> None:
    path = get(hub, tmp_path)
    hub.sent.clear()
    assert get(hub, tmp_path) == path
    assert set(hub.sent) <= {""}  # the list of files


def test_shards_come_from_the_index(sharded: HubServer, tmp_path: Path) -> None:
    path = get(sharded, tmp_path)
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        assert (path / name).read_bytes() == sharded.files[name]
    assert sharded.sent["consolidated.safetensors"] == 0


def test_a_revision_is_pinned(hub: HubServer, tmp_path: Path) -> None:
    assert get(hub, tmp_path, f"{REPO}@v1").name == COMMIT
    hub.requests.clear()
    assert get(hub, tmp_path, f"{REPO}@{COMMIT}").name == COMMIT
    assert hub.requests == []  # a commit that is here needs no hub
    with pytest.raises(CheckpointError, match="has no revision 'v2'"):
        get(hub, tmp_path, f"{REPO}@v2")


def test_a_line_that_breaks_is_taken_up_at_once(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts["model.safetensors"] = 400_000
    path = get(hub, tmp_path)
    assert (path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert hub.sent["model.safetensors"] == len(hub.files["model.safetensors"])


def test_the_next_command_fetches_only_the_rest(hub: HubServer, tmp_path: Path) -> None:
    size = len(hub.files["model.safetensors"])
    hub.cuts["model.safetensors"], hub.fatal = 400_000, True
    with pytest.raises(CheckpointError, match="cannot reach .* run the same command again"):
        get(hub, tmp_path)
    (partial,) = tmp_path.rglob("*.incomplete")
    kept = partial.stat().st_size
    assert kept == hub.sent["model.safetensors"] == 400_000
    hub.dead = hub.fatal = False
    hub.sent.clear()
    heard = Heard()
    path = get(hub, tmp_path, progress=heard)
    assert hub.sent["model.safetensors"] == size - kept
    assert heard.steps["model.safetensors"] == [size, size]
    assert (path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_damaged_weights_are_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.damage = "model.safetensors"
    with pytest.raises(CheckpointError, match="damaged on its way; run the same command again"):
        get(hub, tmp_path)
    hub.damage = ""
    assert get(hub, tmp_path).is_dir()


def test_without_the_hub_the_cache_answers(hub: HubServer, tmp_path: Path) -> None:
    path = get(hub, tmp_path)
    hub.status = 503
    assert get(hub, tmp_path) == path
    hub.status, hub.dead = 0, True
    assert get(hub, tmp_path) == path


def test_a_config_that_is_refused_costs_no_weights(hub: HubServer, tmp_path: Path) -> None:
    def refuse(config: object) -> None:
        raise CheckpointError("not this one")

    with pytest.raises(CheckpointError, match="not this one"):
        fetch(REPO, accept=refuse, endpoint=hub.endpoint, cache=tmp_path)
    assert hub.sent["model.safetensors"] == 0


def test_a_gated_model_says_how_to_get_in(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated, hub.token = True, "hf_test"
    with pytest.raises(CheckpointError, match=f"accept its conditions at .*{REPO} and set HF_TOK"):
        get(hub, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert get(hub, tmp_path).is_dir()


def test_unknown_models_are_compared_with_known_ones(hub: HubServer, tmp_path: Path) -> None:
    for name, hint in (("HuggingFaceTB/SmolLM2-135M", "did you mean"), ("a/b", "check the name")):
        with pytest.raises(CheckpointError, match=f"no directory here, and the hub .* {hint}"):
            get(hub, tmp_path, name)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("model.safetensors", "no safetensors but onnx/model.onnx, pytorch_model.bin, which may"),
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_a_repository_that_lacks_something(
    hub: HubServer, tmp_path: Path, drop: str, message: str
) -> None:
    del hub.files[drop]
    with pytest.raises(CheckpointError, match=message):
        get(hub, tmp_path)
    assert not hub.sent["pytorch_model.bin"]


def test_an_index_that_names_what_is_not_there(sharded: HubServer, tmp_path: Path) -> None:
    del sharded.files["model-2-of-2.safetensors"]
    with pytest.raises(CheckpointError, match=r"names model-2-of-2\.safetensors, which it does"):
        get(sharded, tmp_path)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # of the library, for a config
def test_a_full_disk_is_seen_before_the_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000, "total": 1, "used": 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="bytes in .*, where 1,000 are free; free some space"):
        get(hub, tmp_path)
    assert hub.sent["model.safetensors"] == 0


def command(
    hub: HubServer, home: Path, *arguments: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    """The command line, with an environment of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "hf"), **extra}
    return subprocess.run(
        [sys.executable, "-P", "-m", "ondevice", *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_build_takes_a_name(hub: HubServer, tmp_path: Path) -> None:
    settings = ("--set", "quant.default=f32")
    done = command(hub, tmp_path, "build", f"{REPO}@v1", *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'stories.bundle'}\n"
    local = command(hub, tmp_path, "build", str(STORIES), *settings, "--out", "local.bundle")
    assert local.returncode == 0, local.stderr
    ours, theirs = (tmp_path / name / "weights.bin" for name in ("stories.bundle", "local.bundle"))
    assert ours.read_bytes()[64:] == theirs.read_bytes()[64:]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to fetch it; unset that, or name a"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9 for"),
    ],
)
def test_no_network_is_one_line(
    hub: HubServer, tmp_path: Path, fault: dict[str, str], message: str
) -> None:
    done = command(hub, tmp_path, "build", REPO, **fault)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("ondevice: error: ")
    assert message in done.stderr
    assert not list(tmp_path.glob("*.bundle*"))


def test_an_unknown_architecture_is_said_before_the_weights(hub: HubServer, tmp_path: Path) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps(config | {"architectures": ["MambaForCausalLM"]}).encode()
    done = command(hub, tmp_path, "build", REPO)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "'MambaForCausalLM' is not supported" in done.stderr
    assert "known: LlamaForCausalLM" in done.stderr
    assert hub.sent["model.safetensors"] == 0
