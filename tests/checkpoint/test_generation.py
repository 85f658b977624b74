"""generation_config.json: what ends a text, and how the model's makers sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ondevice.bundle.format import SamplingInfo
from ondevice.checkpoint.generation import end_tokens, first_token, read_sampling
from ondevice.checkpoint.open import Checkpoint
from ondevice.errors import CheckpointError


def checkpoint(generation: dict[str, Any], config: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(Path("home"), "LlamaForCausalLM", config or {}, generation, {})


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({}, {}, ()),
        ({}, {"eos_token_id": 2}, (2,)),
        ({"eos_token_id": [7, 2]}, {"eos_token_id": 2}, (7, 2)),
    ],
)
def test_end_tokens(generation: dict[str, Any], config: dict[str, Any], ends: tuple[int]) -> None:
    assert end_tokens(checkpoint(generation, config)) == ends


def test_first_token() -> None:
    assert first_token(checkpoint({}, {"bos_token_id": 1})) == 1
    assert first_token(checkpoint({})) is None


def test_sampling() -> None:
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}
    assert read_sampling(checkpoint({})) == SamplingInfo()
    assert read_sampling(checkpoint(config)) == SamplingInfo(repetition_penalty=1.1)
    expected = SamplingInfo(0.6, top_k=20, top_p=0.95, repetition_penalty=1.1)
    assert read_sampling(checkpoint({**config, "do_sample": True})) == expected
    assert read_sampling(checkpoint({"do_sample": True})) == SamplingInfo(1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature must be a number from 0"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_p": 1.5}, "top_p must be a number from 0.0 to 1.0, not 1.5"),
        ({"top_k": True}, "top_k must be a number"),
        ({"repetition_penalty": "high"}, "not high"),
    ],
)
def test_sampling_that_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_sampling(checkpoint({"do_sample": True, **values}))


@pytest.mark.parametrize("token", ["2", -1, [2, None], True])
def test_tokens_that_are_none(token: object) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id must be a token number"):
        end_tokens(checkpoint({"eos_token_id": json.loads(json.dumps(token))}))
