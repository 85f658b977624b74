"""Values of od_sampling that mean nothing: one sentence each, and nothing has happened."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.sampling import Sampling

from .conftest import OpenToy

NAN = math.nan


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": NAN}, "temperature is not a number within 0..1000000"),
        ({"temperature": -1.0}, "temperature is not a number within"),
        ({"temperature": math.inf}, "temperature is not a number within"),
        ({"top_k": -1}, "top_k = -1 is negative"),
        ({"top_p": NAN}, "top_p is not a number within 0..1"),
        ({"top_p": 1.5}, "top_p is not"),
        ({"min_p": -0.1}, "min_p is not a number within 0..1"),
        ({"typical_p": 2.0}, "typical_p is not a number within 0..1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is not a number within 0.01..100"),
        ({"repetition_penalty": NAN}, "repetition_penalty is not"),
        ({"presence_penalty": math.inf}, "presence_penalty is not a number within -100..100"),
        ({"frequency_penalty": NAN}, "frequency_penalty is not a number within -100..100"),
        ({"penalty_tokens": -5}, "penalty_tokens = -5 is negative"),
        ({"logprobs": 21}, "of the chosen token and of 0 to 20 of the likeliest"),
        ({"logprobs": -1}, "of the chosen token and of 0 to 20 of the likeliest"),
        ({"timeout_s": -1.0}, "the timeout is no number of milliseconds, or negative"),
        ({"timeout_s": NAN}, "the timeout is no number"),
        ({"stop_tokens": tuple(range(17))}, "17 stop tokens, at most 16"),
        ({"stop_tokens": (3, 97)}, "stop token 1 is 97, the vocabulary is 0..96"),
        ({"logit_bias": {97: 1.0}}, "logit_bias of token 97, the vocabulary is 0..96"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias of token -1"),
        ({"logit_bias": {2**40: 1.0}}, "token 1099511627776 is not a 32-bit number"),
        ({"logit_bias": {5: NAN}}, "the logit_bias of token 5 is not a number within"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias of 1025 tokens, at most"),
        ({"stop": ("x",)}, "stop strings need a tokenizer"),
        ({"stop": ("x",) * 17}, "17 stop strings, at most 16"),
    ],
)
def test_refused(fields: dict[str, Any], message: str, open_toy: OpenToy) -> None:
    conversation = open_toy().conversation()
    with pytest.raises(RuntimeFailure, match=message) as refused:
        conversation.submit([1, 2], 3, Sampling(**fields))
    assert refused.value.status == Status.INVALID
    assert conversation.length == 0
