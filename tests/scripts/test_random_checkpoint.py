"""Random checkpoints are those of transformers' shape, the same for a seed, and build."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "random_checkpoint.py"
SMALL = "--hidden 64 --layers 2 --heads 4 --kv-heads 2 --inner 96 --vocab 300 --context 64".split()


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("random_checkpoint")


def write(out: Path, *options: str) -> Path:
    arguments = ["tinyllama-1.1b", str(out), *SMALL, *options]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, capture_output=True)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_seed_says_every_byte(tmp_path: Path) -> None:
    first, again, other = (
        files(write(tmp_path / name, "--seed", seed)) for name, seed in ("a1", "b1", "c2")
    )
    assert first == again
    differing = {name for name in first if first[name] != other[name]}
    assert differing == {"model-00001-of-00001.safetensors"}


def test_transformers_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        write(tmp_path / "model"), output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    weights = model.model.layers[1].mlp.up_proj.weight.detach().float()
    assert 0.018 < float(weights.std()) < 0.022
    assert float(model.model.norm.weight.detach().float().min()) == 1.0
    assert bool(torch.isfinite(model(torch.tensor([[1, 70, 80]])).logits).all())


def test_it_builds_and_runs(tmp_path: Path) -> None:
    import ondevice
    from ondevice.build import build
    from ondevice.recipe import load_recipe

    checkpoint, settings = write(tmp_path / "model"), ["context_tokens=0"]
    bundle = build(
        load_recipe("tinyllama-1.1b", model=checkpoint, settings=settings), tmp_path / "b"
    )
    with ondevice.load(bundle, threads=1) as engine:
        assert len(list(engine.generate_tokens("Hello", max_tokens=5))) <= 5
        assert engine.tokenizer.decode(engine.tokenizer.encode("Hello, wörld")) == "Hello, wörld"


def test_shards_are_cut_between_tensors(script: ModuleType, tmp_path: Path) -> None:
    shape = script.Shape(64, 2, 4, 2, 96, 300, 64)
    total = script.write_weights(tmp_path, shape, seed=3, shard_bytes=50_000)
    tensors = [name for shard in script.shards(shape, 50_000) for name, _ in shard]
    assert tensors == [name for name, _ in shape.tensors()]
    found = sorted(tmp_path.glob("*.safetensors"))
    assert len(found) == len(script.shards(shape, 50_000)) > 2
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in found)
    assert sum(path.stat().st_size for path in found) == total + headers


PARAMETERS = {
    "smollm2-135m": 162_826_560,  # its head of 28 million is its embedding, ours one by itself
    "tinyllama-1.1b": 1_100_048_384,
    "llama-7b": 6_738_415_616,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_the_parameters_of_their_name(script: ModuleType, preset: str) -> None:
    parameters = sum(int(np.prod(size)) for _, size in script.PRESETS[preset].tensors())
    assert parameters == PARAMETERS[preset]


def test_bfloat16_rounds_to_nearest_even(script: ModuleType) -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 1.005], np.float32)
    bits = script.bfloat16(values).astype(np.uint32) << 16
    assert bits.view(np.float32).tolist() == [1.0, 1.0, 1.015625, -2.5, 1.0078125]


def test_a_full_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "tinyllama-1.1b", str(tmp_path)], capture_output=True
    )
    assert done.returncode == 1
    assert b"is not empty" in done.stderr
