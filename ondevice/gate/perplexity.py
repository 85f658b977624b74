"""Perplexity of a bundle on a text, counted as llama-perplexity counts it.

The tokens of the text are cut into windows of `context_tokens`; what is left over at the end is not
used. Of each window only the second half is scored, so that every scored token is predicted from at
least half a window; or all of it. Where the tokenizer puts a token before every text, that token
takes the place of each window's first, which is never scored.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ondevice.bundle.program import KV_BLOCK_TOKENS
from ondevice.bundle.read import open_bundle
from ondevice.errors import OndeviceError
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.engine import Engine
from ondevice.runtime.tokenizer import Tokenizer

Score = Literal["half", "all"]
DEFAULT_CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class Perplexity:
    """What the first `windows` of `windows_total` windows have shown.

    `nll` is the sum over `scored_tokens` of -ln p(token), `nll_squares` that of its squares.
    """

    windows: int
    windows_total: int
    context_tokens: int
    scored_tokens: int = 0
    nll: float = 0.0
    nll_squares: float = 0.0

    @property
    def mean_nll(self) -> float:
        return self.nll / self.scored_tokens

    @property
    def value(self) -> float:
        """exp of the mean of -ln p(token)."""
        return math.exp(self.mean_nll)

    @property
    def error(self) -> float:
        """Standard error of `value`, as if the tokens were independent."""
        variance = self.nll_squares / self.scored_tokens - self.mean_nll**2
        return self.value * math.sqrt(max(0.0, variance) / max(1, self.scored_tokens - 1))


def perplexity(
    bundle: str | os.PathLike[str],
    text: str,
    *,
    context_tokens: int | None = None,
    score: Score = "half",
    threads: int | None = None,
) -> Iterator[Perplexity]:
    """The running figures after each window; the last are those of the whole text.

    `context_tokens` is the length of a window, by default the bundle's context, at most 1024.
    Memory holds one window's KV cache and at most 64 rows of logits. Raises OndeviceError where
    the text is shorter than a window or the window longer than the context.
    """
    context = _context(bundle, context_tokens)
    blocks = -(-context // KV_BLOCK_TOKENS)
    with Engine(bundle, threads=threads, conversations=1, kv_blocks=blocks) as engine:
        tokens = engine.tokenizer.encode(text)
        first = leading_token(engine.tokenizer)
        running = Perplexity(0, _window_count(len(tokens), context), context)
        with engine.conversation() as conversation:
            for window in windows(tokens, context, first):
                conversation.rewind(0)
                begin = context // 2 if score == "half" else 0
                for losses in _losses(conversation, window, begin, engine.info.logit_rows):
                    running = _added(running, losses)
                running = replace(running, windows=running.windows + 1)
                yield running


def leading_token(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, None where it puts none."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    return whole[0] if whole[:1] != bare[:1] else None


def windows(tokens: Sequence[int], context: int, first: int | None) -> Iterator[list[int]]:
    """Whole windows of `context` tokens, each beginning with the token `first` if there is one."""
    for begin in range(0, len(tokens) - context + 1, context):
        window = list(tokens[begin : begin + context])
        if first is not None:
            window[0] = first
        yield window


def negative_log_likelihood(logits: NDArray[np.float32], targets: Sequence[int]) -> NDArray[Any]:
    """-ln softmax(logits[i])[targets[i]] for each row of logits [N, vocab], as f64 [N]."""
    top = logits.max(axis=1, keepdims=True)
    shifted = logits - top
    wanted = shifted[np.arange(len(targets)), targets].astype(np.float64)
    total = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)
    losses: NDArray[Any] = np.log(total) - wanted
    return losses


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """The text of a UTF-8 file, or of its first `max_bytes` without a character cut in two."""
    try:
        with path.open("rb") as file:
            data = file.read() if max_bytes is None else file.read(max_bytes)
            cut = bool(file.read(1))
    except OSError as error:
        raise OndeviceError(f"cannot read {path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not (cut and error.reason == "unexpected end of data"):
            raise OndeviceError(
                f"{path} is not UTF-8 text: byte {error.start} does not fit"
            ) from error
        text = data[: error.start].decode("utf-8")
    if not text.strip():
        raise OndeviceError(f"{path} holds no text")
    return text


def _context(bundle: str | os.PathLike[str], asked: int | None) -> int:
    """The length of a window. Raises OndeviceError where it is not possible."""
    longest = open_bundle(bundle).manifest.model.context_tokens
    if asked is None:
        return min(longest, DEFAULT_CONTEXT_TOKENS)
    if not 2 <= asked <= longest:
        raise OndeviceError(f"a window of {asked} tokens must have 2 to {longest}, the context")
    return asked


def _window_count(tokens: int, context: int) -> int:
    if tokens < context:
        raise OndeviceError(
            f"the text has {tokens} tokens, less than one window of {context}; "
            "take a longer text or a shorter --context"
        )
    return tokens // context


def _losses(
    conversation: Conversation, window: Sequence[int], begin: int, rows: int
) -> Iterator[NDArray[Any]]:
    """Losses of window[begin + 1 :], in pieces of at most `rows`."""
    if begin:
        deque(conversation.generate_tokens(window[:begin], max_tokens=0), maxlen=0)
    for i in range(begin, len(window) - 1, rows):
        end = min(i + rows, len(window) - 1)
        yield negative_log_likelihood(conversation.logits(window[i:end]), window[i + 1 : end + 1])


def _added(running: Perplexity, losses: NDArray[Any]) -> Perplexity:
    return replace(
        running,
        scored_tokens=running.scored_tokens + len(losses),
        nll=running.nll + float(losses.sum()),
        nll_squares=running.nll_squares + float((losses**2).sum()),
    )
