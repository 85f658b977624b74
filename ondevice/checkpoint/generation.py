"""generation_config.json: which tokens end a text, and how to sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ondevice.bundle.format import SamplingInfo
from ondevice.checkpoint.open import Checkpoint
from ondevice.errors import CheckpointError

_FRACTIONS = ("top_p", "min_p", "typical_p")  # 1 and 0 switch them off


def end_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Tokens that end a text, as generation_config.json or else config.json has them."""
    ends = _merged(checkpoint).get("eos_token_id")
    found = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return tuple(_token(checkpoint, "eos_token_id", token) for token in found)


def first_token(checkpoint: Checkpoint) -> int | None:
    """The token that begins a text, None where neither file names one."""
    token = _merged(checkpoint).get("bos_token_id")
    return None if token is None else _token(checkpoint, "bos_token_id", token)


def read_sampling(checkpoint: Checkpoint) -> SamplingInfo:
    """What generation_config.json says of sampling; without `do_sample` that is: do not.

    As in transformers, where the penalty counts either way. Raises CheckpointError for a value
    that makes no sense.
    """
    config = checkpoint.generation_config
    penalty = _number(checkpoint, "repetition_penalty", 0.0, math.inf)
    if not config.get("do_sample"):
        return SamplingInfo(repetition_penalty=penalty)
    top_k = _number(checkpoint, "top_k", 0, 2**31 - 1)
    temperature = _number(checkpoint, "temperature", 0.0, math.inf)
    fractions = {key: _number(checkpoint, key, 0.0, 1.0) for key in _FRACTIONS}
    return SamplingInfo(
        temperature=1.0 if temperature is None else temperature,
        top_k=None if top_k is None else int(top_k),
        repetition_penalty=penalty,
        **fractions,
    )


def _merged(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return {**checkpoint.config, **checkpoint.generation_config}


def _token(checkpoint: Checkpoint, key: str, value: object) -> int:
    if type(value) is not int or value < 0:
        raise CheckpointError(f"{checkpoint.path}: {key} must be a token number, not {value!r}")
    return value


def _number(checkpoint: Checkpoint, key: str, low: float, high: float) -> float | None:
    value = checkpoint.generation_config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        where = checkpoint.path / "generation_config.json"
        raise CheckpointError(f"{where}: {key} must be a number from {low} to {high}, not {value}")
    return float(value)
