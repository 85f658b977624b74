"""config.json is read strictly: both generations of keys, and no key unread."""

from __future__ import annotations

import json

import pytest

from ondevice.errors import CheckpointError
from ondevice.models import FAMILIES, family_of, trace
from ondevice.models.llama import parse_config

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_defaults_are_those_of_transformers():
    config = parse_config(BASE)
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 4, 8)
    assert not config.tied
    assert config.rope.inv_freq == parse_config(BASE | {"rope_theta": 10000}).rope.inv_freq
    null = {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None}
    assert parse_config(BASE | null) == config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
            LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5},
        ),
    ],
)
def test_old_and_new_rope_keys_mean_the_same(old, new):
    assert parse_config(BASE | old) == parse_config(BASE | {"rope_parameters": new})
    assert parse_config(BASE | old).rope != parse_config(BASE).rope


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "the key 'hidden_size' is missing"),
        ({"hidden_size": "32"}, "hidden_size = '32' must be a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True must be a positive integer"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0 must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "must be a positive number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1 must be true or false"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' must be 'silu'"),
        ({"rope_interleaved": True}, "rope_interleaved = True must be False"),
        ({"num_key_value_heads": 3}, "4 heads of 8 cannot share 3"),
        ({"head_dim": 7}, "4 heads of 7"),
        ({"quantization_config": {}}, "unknown key 'quantization_config'"),
        ({"sliding_window": 128}, "unknown key 'sliding_window'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: the key 'factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}, "unknown key 'beta'"),
        ({"rope_scaling": 2.0}, "rope_scaling = 2.0 must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {}, "rope_scaling": {}}, "exclude each other"),
        (
            {"rope_scaling": LLAMA3 | {"type": "llama3", "high_freq_factor": 1}},
            "high_freq_factor 1.0 must exceed 1.0",
        ),
    ],
)
def test_what_is_not_understood_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        parse_config(BASE | changes)


def test_families_refuse_what_they_do_not_support():
    qwen2, mistral = FAMILIES["Qwen2ForCausalLM"], FAMILIES["MistralForCausalLM"]
    with pytest.raises(CheckpointError, match="use_sliding_window = True must be False"):
        qwen2.parse_config(BASE | {"use_sliding_window": True})
    with pytest.raises(CheckpointError, match="layer_types"):
        qwen2.parse_config(BASE | {"layer_types": ["full_attention", "sliding_attention"]})
    with pytest.raises(CheckpointError, match="sliding_window = 4096 must be None"):
        mistral.parse_config(BASE | {"sliding_window": 4096})
    with pytest.raises(CheckpointError, match="the key 'sliding_window' is missing"):
        mistral.parse_config(BASE)
    with pytest.raises(CheckpointError, match="'GPT2LMHeadModel' is not supported"):
        family_of("GPT2LMHeadModel")


def test_the_carried_checkpoint_traces(stories260k):
    config = json.loads((stories260k / "config.json").read_text())
    family = family_of(config["architectures"][0])
    graph = trace(family, family.parse_config(config), context_tokens=100)
    assert [str(v.type) for v in graph.inputs] == [
        "i32[S]",
        "i32[S]",
        "i32[S]",
        "i32[B, 4]",
        "i32[L]",
        "f32[S, 8]",
        "f32[P, 5, 2, 4, 256]",
    ]
    types = graph.types()
    assert [str(types[name]) for name in graph.outputs] == ["f32[L, 512]", "f32[P, 5, 2, 4, 256]"]
    assert "layers.3.mlp.up" in {node.source for node in graph.nodes}
