"""Interpreted graphs against transformers in float32: the models mean what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
MODELS = {
    "llama untied": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama multi-query": ("Llama", {"num_key_value_heads": 1}),
    "llama wide heads": ("Llama", {"head_dim": 10}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama linear rope": ("Llama", {"rope_parameters": LINEAR}),
    "llama3 rope": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 8}),
}


def randomize(model: torch.nn.Module) -> None:
    """Values large enough that every weight, bias and norm shows in the logits."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)


def save_random(directory: Path, kind: str, changes: dict[str, object], dtype="float32") -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**TINY | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    randomize(model)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def expected_logits(path: Path, tokens: list[int]) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to float32 rounding, at the scale of the logits."""
    assert np.abs(got - expected).max() < 2e-5 * np.abs(expected).max()


def random_tokens(count: int, vocab_size: int = 61) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab_size, count).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_random_models_agree(tmp_path, load, name):
    path = save_random(tmp_path, *MODELS[name])
    tokens = random_tokens(40)  # more than one block of the cache
    assert_close(load(path).step((0, tokens)), expected_logits(path, tokens))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints_agree(tmp_path, load, dtype):
    path = save_random(tmp_path, "Llama", {}, dtype)
    tokens = random_tokens(9)
    assert_close(load(path).step((0, tokens)), expected_logits(path, tokens))


def test_sharded_checkpoints_agree(tmp_path, load):
    path = save_random(tmp_path, "Llama", {})
    tokens = random_tokens(9)
    expected = expected_logits(path, tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="10KB")
    assert (path / "model.safetensors.index.json").is_file()
    assert_close(load(path).step((0, tokens)), expected)


def test_ragged_steps_agree_with_whole_conversations(tmp_path, load):
    """Prefill in pieces, decode one by one, two conversations interleaved in each step."""
    path = save_random(tmp_path, "Qwen2", {})
    first, second = random_tokens(37), random_tokens(20)[::-1]
    model = load(path)
    logits: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for left, right in (
        (first[:5], second[:11]),
        (first[5:33], second[11:12]),
        (first[33:34], second[12:13]),
        ([], second[13:20]),
        (first[34:37], []),
    ):
        rows = model.step((1, right), (0, left))
        logits[1].append(rows[: len(right)])
        logits[0].append(rows[len(right) :])
    assert_close(np.concatenate(logits[0]), expected_logits(path, first))
    assert_close(np.concatenate(logits[1]), expected_logits(path, second))


STORY = [1, 403, 407, 261, 378, 42, 7, 99, 310, 256, 12, 77]


def test_stories260k_agrees(stories260k, load):
    assert_close(load(stories260k).step((0, STORY)), expected_logits(stories260k, STORY))


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_stories260k_in_other_architectures_agrees(stories260k, load, name):
    shared = Path(__file__).parents[3] / "shared" / "models" / "derived" / f"stories260K-{name}"
    if not shared.is_dir():
        pytest.skip(f"needs the shared checkpoint {shared.name}")
    same = load(stories260k).step((0, STORY))
    assert_close(load(shared).step((0, STORY)), same)


def test_inverse_frequencies_are_those_of_transformers():
    """Within one unit in the last place (torch's powf is not exactly rounded), mostly equal."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from ondevice.models.llama import parse_config

    kinds = ({"rope_type": "default", "rope_theta": 500000.0}, LINEAR, LLAMA3)
    for head_dim in (8, 64, 128):
        for rope in kinds:
            config = transformers.LlamaConfig(
                **TINY | {"head_dim": head_dim, "max_position_embeddings": 4096},
                rope_parameters=dict(rope),
            )
            expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
            got = np.array(parse_config(config.to_diff_dict()).rope.inv_freq, np.float32)
            ulp = np.abs(got.view(np.int32) - expected.view(np.int32))
            assert ulp.max() <= (4 if rope is LLAMA3 else 1), (rope, ulp)
            assert (ulp == 0).mean() > 0.8, (rope, ulp)
