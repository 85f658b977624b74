"""Answers in the shapes of OpenAI's chat completions API, as frozen dataclasses.

`to_dict` gives the JSON object that the API would send. https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


class _Shape:
    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: dictionaries, lists, numbers, text and None."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


@dataclass(frozen=True)
class TopLogprob(_Shape):
    """A token that was possible; `bytes` None where it is no whole character."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


@dataclass(frozen=True)
class TokenLogprob(_Shape):
    """A token of the answer and the likeliest in its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[TopLogprob, ...]


@dataclass(frozen=True)
class Logprobs(_Shape):
    content: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class PromptTokensDetails(_Shape):
    """`cached_tokens` of the prompt were in the KV cache and not computed again."""

    cached_tokens: int


@dataclass(frozen=True)
class Usage(_Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


@dataclass(frozen=True)
class AssistantMessage(_Shape):
    content: str
    role: Literal["assistant"] = "assistant"


@dataclass(frozen=True)
class Choice(_Shape):
    """finish_reason: "stop" where the model ended or a stop string came, "length" where it was cut
    by max_tokens, the context or the timeout."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class ChatCompletion(_Shape):
    """`created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


@dataclass(frozen=True)
class Delta(_Shape):
    """What a chunk adds; None is left out of the JSON."""

    role: Literal["assistant"] | None = None
    content: str | None = None


@dataclass(frozen=True)
class ChunkChoice(_Shape):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class ChatCompletionChunk(_Shape):
    """A piece of an answer. `usage` is in the last one, where it was asked for."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Delta):
        return {name: item for name, item in fields.items() if item is not None}
    return fields
