"""A text that grows in the KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ondevice.closes import Closes
from ondevice.errors import RuntimeFailure
from ondevice.runtime.generation import Generation
from ondevice.runtime.header import Status
from ondevice.runtime.native import ConversationStats, NativeConversation
from ondevice.runtime.sampling import GREEDY, Sampling
from ondevice.runtime.saved import save_conversation

if TYPE_CHECKING:
    from ondevice.runtime.engine import Engine

Prompt = str | Sequence[int]


class Conversation(Closes):
    """A text that grows: what was submitted and generated stays in the KV cache.

    One may be read by one thread at a time; any thread may close it.
    """

    def __init__(self, engine: Engine, native: NativeConversation) -> None:
        self._engine = engine
        self._native = native
        self._generation: Generation | None = None

    @property
    def ending(self) -> Status | None:
        """How the last generation ended; None before that."""
        return None if self._generation is None else self._generation.ending

    @property
    def length(self) -> int:
        """Tokens that the conversation holds."""
        return self._native.length

    @property
    def stats(self) -> ConversationStats:
        """What the last prompt and its generation took: reused, computed, how fast."""
        return self._native.stats

    def fork(self) -> Conversation:
        """A second conversation that holds the same; from here on they are independent.

        Nothing is computed or copied: KV blocks are shared until one of the two writes to them.
        """
        return Conversation(self._engine, self._native.fork())

    def generate(
        self, prompt: Prompt = (), max_tokens: int | None = None, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """Like `generate_tokens`, as text without special tokens, in whole characters."""
        tokens = self._encode(prompt)
        # The space before a first word is written only where there is text before it.
        continues = self.length > 0 or bool(self._engine.tokenizer.decode(tokens[:8]))
        yield from self.begin(tokens, max_tokens, sampling, continues=continues).text()

    def generate_tokens(
        self, prompt: Prompt = (), max_tokens: int | None = None, sampling: Sampling = GREEDY
    ) -> Iterator[int]:
        """Append `prompt` (nothing: continue), then yield tokens as they are generated.

        Ends as `sampling` says (stop tokens None: the model's own), after `max_tokens`, or, where
        that is None, at the end of the context; `ending` says which it was. Leaving the iterator
        cancels, and the conversation forgets what was not yielded. Raises RuntimeFailure where the
        prompt does not fit, or the context or the KV cache is full before `max_tokens`.

        A prompt given as text is a whole text, with the tokenizer's special tokens, where the
        conversation is empty, and otherwise continues it.
        """
        yield from self.begin(self._encode(prompt), max_tokens, sampling).tokens()

    def begin(
        self,
        tokens: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        *,
        continues: bool = True,
    ) -> Generation:
        """Submit `tokens` and return the answer, to be read as text or as tokens.

        `continues`: the answer's first word follows a text, so its leading space is written.
        """
        if sampling.stop_tokens is None:
            ends = self._engine.bundle.manifest.tokenizer.eos_token_ids
            sampling = replace(sampling, stop_tokens=ends)
        tokenizer = self._engine.tokenizer
        self._generation = Generation(
            self._native, tokenizer, tokens, max_tokens, sampling, continues=continues
        )
        return self._generation

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens`; returns their logits [len(tokens), vocab_size]."""
        info = self._engine.info
        pieces = [
            self._native.logits(tokens[i : i + info.logit_rows], info.vocab_size)
            for i in range(0, len(tokens), info.logit_rows)
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, info.vocab_size), np.float32)

    def rewind(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        self._native.rewind(tokens)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the conversation, at rest, to a file that `Engine.restore` opens.

        It holds all tokens, and what was computed for them. The file is complete or not there; one
        of the same name is replaced.
        """
        save_conversation(self._native, Path(path))

    def cancel(self) -> None:
        """End the generation within a token; any thread may call it, also when nothing runs."""
        try:
            self._native.cancel()
        except RuntimeFailure as error:
            if error.status != Status.CLOSED:
                raise

    def close(self) -> None:
        """Cancel what it generates and free its KV blocks; may be called twice."""
        self._native.close()

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        return self._engine.tokenizer.encode(prompt, add_special_tokens=self.length == 0)
