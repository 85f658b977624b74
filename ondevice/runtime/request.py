"""Arguments of `chat.completions.create`, read strictly before anything is computed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from ondevice.errors import RuntimeFailure, nearest
from ondevice.runtime.header import Status
from ondevice.runtime.sampling import Sampling

Message = Mapping[str, Any]  # {"role": ..., "content": text or [{"type": "text", "text": ...}]}


class ChatOptions(TypedDict, total=False):
    """Arguments of `create` beside `messages` and `stream`.

    Those of OpenAI's API mean what they mean there. What is not given, or None, is as the model's
    makers recommend (`sampling` in the manifest); without a seed each answer has its own.
    """

    model: str | None  # the bundle's name, if given
    max_tokens: int | None  # None: to the end of the context
    max_completion_tokens: int | None  # the newer name of the same
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: bool | None
    top_logprobs: int | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None  # by token number
    presence_penalty: float | None
    frequency_penalty: float | None
    n: int | None
    stream_options: Mapping[str, bool] | None  # {"include_usage": True}
    timeout: float | None  # seconds; then the answer ends as if max_tokens were reached
    # Beyond OpenAI's:
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    enable_thinking: bool | None  # False: models that think first shall not


_SAMPLED = (
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty"),
    *("top_k", "min_p", "typical_p", "repetition_penalty"),
)


@dataclass(frozen=True)
class ChatRequest:
    """What `create` was asked for."""

    messages: tuple[dict[str, str], ...]
    sampling: Sampling
    max_tokens: int | None
    n: int
    include_usage: bool
    thinking: bool


def read_request(
    messages: Sequence[Message], options: Mapping[str, Any], defaults: Sampling, model: str
) -> ChatRequest:
    """Raises TypeError for an argument that `create` does not have, RuntimeFailure for a value
    that means nothing. Numbers are checked by the C runtime."""
    for name in options:
        if name not in ChatOptions.__annotations__:
            hint = nearest(name, ChatOptions.__annotations__)
            raise TypeError(f"create() has no argument {name!r}{hint}")
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("model", model) != model:
        raise _invalid(f"this engine runs {model!r}, not {given['model']!r}")
    limits = {given[key] for key in ("max_tokens", "max_completion_tokens") if key in given}
    if len(limits) > 1:
        raise _invalid("max_tokens and max_completion_tokens are two names of one limit")
    n = given.get("n", 1)
    if type(n) is not int or n < 1:
        raise _invalid(f"n = {n!r} must be a number of answers, 1 or more")
    return ChatRequest(
        messages=tuple(_message(i, message) for i, message in enumerate(messages)),
        sampling=read_sampling(given, defaults),
        max_tokens=limits.pop() if limits else None,
        n=n,
        include_usage=bool(given.get("stream_options", {}).get("include_usage")),
        thinking=given.get("enable_thinking", True),
    )


def read_sampling(given: Mapping[str, Any], defaults: Sampling) -> Sampling:
    """`defaults` with what ChatOptions say of sampling, where they are given."""
    stop = given.get("stop", ())
    bias = {int(token): float(value) for token, value in given.get("logit_bias", {}).items()}
    top = given.get("top_logprobs")
    if top is not None and not given.get("logprobs"):
        raise _invalid("top_logprobs needs logprobs=True")
    sampling = replace(
        defaults,
        **{name: given[name] for name in _SAMPLED if name in given},
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logit_bias=bias,
        logprobs=(top or 0) if given.get("logprobs") else None,
        timeout_s=given.get("timeout"),
    )
    if "seed" not in given and sampling.temperature != 0:
        sampling = replace(sampling, seed=secrets.randbits(63))
    return sampling


def _message(index: int, message: Message) -> dict[str, str]:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise _invalid(f"{where} must be a dictionary with role and content, not {message!r}")
    for key in ("role", "content"):
        if key not in message:
            raise _invalid(f"{where} has no {key!r}")
    if extra := sorted(set(message) - {"role", "content", "name"}):
        raise _invalid(f"{where} has {extra[0]!r}, which chat templates here do not know")
    content = message["content"]
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "".join(_part(where, part) for part in content)
    if not isinstance(content, str) or not isinstance(message["role"], str):
        raise _invalid(f"{where}: role and content must be text")
    return {"role": message["role"], "content": content}


def _part(where: str, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise _invalid(f"{where}: a part of a content must be {{'type': 'text', 'text': ...}}")


def _invalid(text: str) -> RuntimeFailure:
    return RuntimeFailure(text, int(Status.INVALID))
