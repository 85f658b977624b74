"""Mistral (arXiv 2310.06825) without its sliding window: Llama blocks under another name."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.models.config import ConfigReader
from ondevice.models.family import Family
from ondevice.models.llama import LlamaConfig, forward, parse_block, weights


def parse_config(config: Mapping[str, object]) -> LlamaConfig:
    """Read a Mistral config.json. Raises CheckpointError."""
    reader = ConfigReader(config)
    # An absent key would mean transformers' default, a window of 4096 tokens: null must be said.
    reader.require_present("sliding_window", None)
    return parse_block(reader, qkv_bias=False, o_bias=False, mlp_bias=False)


MISTRAL = Family("mistral", parse_config, weights, forward)
