"""Qwen 2 and 2.5 (arXiv 2407.10671): Llama blocks with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.models.config import ConfigReader
from ondevice.models.family import Family
from ondevice.models.llama import LlamaConfig, forward, parse_block, weights


def parse_config(config: Mapping[str, object]) -> LlamaConfig:
    """Read a Qwen2 config.json. Raises CheckpointError."""
    reader = ConfigReader(config)
    reader.require("use_sliding_window", False)
    reader.ignore("sliding_window")
    reader.full_attention("layer_types")
    return parse_block(reader, qkv_bias=True, o_bias=False, mlp_bias=False)


QWEN2 = Family("qwen2", parse_config, weights, forward)
