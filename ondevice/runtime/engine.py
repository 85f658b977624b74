"""Run a bundle: `Engine` and `Conversation`.

    with Engine("stories260k.bundle") as engine:
        for piece in engine.generate("Once upon a time", max_tokens=64):
            print(piece, end="", flush=True)

All generation happens in the C runtime; this file opens bundles and turns tokens into text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ondevice import debug
from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.read import Bundle, open_bundle
from ondevice.errors import RuntimeFailure
from ondevice.runtime.native import (
    ConversationStats,
    EngineInfo,
    Library,
    NativeConversation,
    NativeEngine,
    Status,
    model_descriptor,
)
from ondevice.runtime.sampling import Sampling
from ondevice.runtime.saved import restore_conversation, save_conversation
from ondevice.runtime.tokenizer import open_tokenizer

Prompt = str | Sequence[int]


class Engine:
    """An open bundle.

    `threads` (None: ONDEVICE_THREADS, else one per core), `conversations` open at the same time,
    `kv_blocks` of 32 tokens and the CPU `variant` are the runtime's defaults where not given.
    `draft_tokens` are guessed from the conversation itself and checked in one step, which changes
    the speed and never the tokens: 0 as many as pay off, -1 none, n always n where there is a
    guess. Raises BundleError and RuntimeFailure.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        conversations: int = 0,
        kv_blocks: int = 0,
        variant: str | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self.bundle: Bundle = open_bundle(path)
        library = debug.runtime_library() or self.bundle.libondevice
        abi_hash = self.bundle.manifest.abi_hash
        self._native = NativeEngine(
            Library(library),
            model_descriptor(self.bundle.libmodel, model_symbol(abi_hash)),
            self.bundle.weights_path,
            threads=debug.threads() if threads is None else threads,
            conversations=conversations,
            kv_blocks=kv_blocks,
            variant=variant,
            draft_tokens=draft_tokens,
        )
        self.tokenizer = open_tokenizer(self.bundle, library)

    @property
    def info(self) -> EngineInfo:
        """Sizes, the CPU variant in use, and what is free now."""
        return self._native.info

    def conversation(self) -> Conversation:
        """A new conversation; close it, or use it in a `with` statement."""
        return Conversation(self, self._native.conversation())

    def restore(self, path: str | PathLike[str]) -> Conversation:
        """A conversation that `Conversation.save` wrote; at most 31 tokens are computed again.

        The file is mapped: replace it, but never change it while the engine is open. Raises
        RuntimeFailure where it is damaged, or of another build or other weights.
        """
        return Conversation(self, restore_conversation(self._native, Path(path)))

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Pieces of text that continue `prompt`; see `Conversation.generate_tokens`."""
        with self.conversation() as conversation:
            yield from conversation.generate(prompt, max_tokens, temperature, seed)

    def generate_tokens(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Tokens that continue `prompt`; see `Conversation.generate_tokens`."""
        with self.conversation() as conversation:
            yield from conversation.generate_tokens(prompt, max_tokens, temperature, seed)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [len(tokens), vocab_size] of a text from its start; row i follows tokens[i]."""
        with self.conversation() as conversation:
            return conversation.logits(tokens)

    def close(self) -> None:
        """Stop all generation, join the threads and free the memory; may be called twice."""
        self._native.close()
        self.tokenizer.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Conversation:
    """A text that grows: what was submitted and generated stays in the KV cache."""

    def __init__(self, engine: Engine, native: NativeConversation) -> None:
        self._engine = engine
        self._native = native
        self.ending: Status | None = None  # how the last generation ended

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
        self,
        prompt: Prompt = (),
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Like `generate_tokens`, as text; a piece never ends inside a character."""
        tokens = self._encode(prompt)
        stream = self._engine.tokenizer.stream(continues=self.length + len(tokens) > 0)
        for token in self.generate_tokens(tokens, max_tokens, temperature, seed):
            if piece := stream.add(token):
                yield piece
        if piece := stream.finish():
            yield piece

    def generate_tokens(
        self,
        prompt: Prompt = (),
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Append `prompt` (nothing: continue), then yield tokens as they are generated.

        Ends at one of `stop_tokens` (not yielded; None: the model's end-of-sequence tokens), after
        `max_tokens`, or, where that is None, at the end of the context. Leaving the iterator
        cancels, and the conversation forgets what was not yielded. Raises RuntimeFailure where the
        prompt does not fit, or the context or the KV cache is full before `max_tokens`.

        A prompt given as text is a whole text, with the tokenizer's special tokens, where the
        conversation is empty, and otherwise continues it.
        """
        limit = 2**31 - 1 if max_tokens is None else max_tokens
        if stop_tokens is None:
            stop_tokens = self._engine.bundle.manifest.tokenizer.eos_token_ids
        tokens = self._encode(prompt)
        seen = self.length + len(tokens)
        self.ending = None
        sampling = Sampling(temperature, seed=seed, stop_tokens=tuple(stop_tokens))
        self._native.submit(tokens, limit, sampling)
        try:
            while self.ending is None:
                status, generated = self._native.read()
                for token in generated:
                    seen += 1
                    yield token
                if status not in (Status.OK, Status.TIMEOUT):
                    self.ending = status
        finally:
            if self.ending is None:
                self._cancel(seen)
        unfinished = {Status.KV_FULL} | ({Status.CONTEXT_FULL} if max_tokens is not None else set())
        if self.ending in unfinished:
            raise RuntimeFailure(self._native.explain(), self.ending)

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

    def close(self) -> None:
        """Cancel what it generates and free its KV blocks; may be called twice."""
        self._native.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        return self._engine.tokenizer.encode(prompt, add_special_tokens=self.length == 0)

    def _cancel(self, seen: int) -> None:
        """Bring the conversation to rest with its first `seen` tokens, unless it is closed."""
        try:
            self._native.cancel()
            while self._native.read()[0] in (Status.OK, Status.TIMEOUT):
                pass
            self._native.rewind(min(seen, self.length))
        except RuntimeFailure as error:
            if error.status not in (Status.CLOSED, Status.FORKED):
                raise
