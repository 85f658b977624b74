"""FAMILIES: the architectures that can be compiled, by the name in config.json.

To add one, write a file like llama.py and add its row here.
"""

from __future__ import annotations

from typing import Any

from ondevice.errors import CheckpointError, nearest
from ondevice.models.family import Family, trace
from ondevice.models.llama import LLAMA
from ondevice.models.mistral import MISTRAL
from ondevice.models.qwen2 import QWEN2

FAMILIES: dict[str, Family[Any]] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
}


def family_of(architecture: str) -> Family[Any]:
    """The family of an architecture. Raises CheckpointError with those that are known."""
    if architecture not in FAMILIES:
        raise CheckpointError(
            f"config.json: architecture {architecture!r} is not supported"
            f"{nearest(architecture, FAMILIES)}"
        )
    return FAMILIES[architecture]


__all__ = ["FAMILIES", "Family", "family_of", "trace"]
