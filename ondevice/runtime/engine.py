"""Run a bundle: `Engine`.

    with Engine("stories260k.bundle") as engine:
        for piece in engine.generate("Once upon a time", max_tokens=64):
            print(piece, end="", flush=True)

All generation happens in the C runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ondevice import debug
from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.read import Bundle, open_bundle
from ondevice.closes import Closes
from ondevice.errors import RuntimeFailure
from ondevice.runtime.chat import Chat
from ondevice.runtime.conversation import Conversation, Prompt
from ondevice.runtime.header import Status
from ondevice.runtime.native import EngineInfo, Library, NativeEngine, model_descriptor
from ondevice.runtime.profile import Profile
from ondevice.runtime.sampling import GREEDY, Sampling
from ondevice.runtime.saved import restore_conversation
from ondevice.runtime.tokenizer import Tokenizer, open_tokenizer


class Engine(Closes):
    """An open bundle.

    `threads` (None: ONDEVICE_THREADS, else one per core), `conversations` open at the same time,
    `kv_blocks` of 32 tokens and the CPU `variant` are the runtime's defaults where not given.
    `draft_tokens` are guessed from the conversation itself and checked in one step, which changes
    the speed and never the tokens: 0 as many as pay off, -1 none, n always n where there is a
    guess. `chat.completions.create` answers messages; see runtime/chat.py. All of it may be used by
    several threads at once. Raises BundleError and RuntimeFailure.
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
        self.tokenizer: Tokenizer = open_tokenizer(self.bundle, library)
        self.chat = Chat(self)
        self._share_prompt()

    @property
    def info(self) -> EngineInfo:
        """Sizes, the CPU variant in use, and what is free now."""
        return self._native.info

    @property
    def chat_sampling(self) -> Sampling:
        """How chat samples where the caller does not say: as the model's makers do."""
        table = vars(self.bundle.manifest.sampling)
        return Sampling(**{name: value for name, value in table.items() if value is not None})

    def _share_prompt(self) -> None:
        """Let conversations find what the bundle ships of its system prompt."""
        if self.bundle.prompt_path is None:
            return
        try:
            self.restore(self.bundle.prompt_path).close()
        except RuntimeFailure as error:
            if error.status != Status.KV_FULL:  # then everybody computes it
                raise

    def conversation(self) -> Conversation:
        """A new conversation; close it, or use it in a `with` statement."""
        self.chat.completions.release()
        return Conversation(self, self._native.conversation())

    def restore(self, path: str | PathLike[str]) -> Conversation:
        """A conversation that `Conversation.save` wrote; at most 31 tokens are computed again.

        The file is mapped: replace it, but never change it while the engine is open. Raises
        RuntimeFailure where it is damaged, or of another build or other weights.
        """
        self.chat.completions.release()
        return Conversation(self, restore_conversation(self._native, Path(path)))

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        *,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Pieces of text that continue `prompt`; see `Conversation.generate_tokens`.

        `temperature` and `seed`, where given, take the place of those in `sampling`.
        """
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        if seed is not None:
            sampling = replace(sampling, seed=seed)
        with self.conversation() as conversation:
            yield from conversation.generate(prompt, max_tokens, sampling)

    def generate_tokens(
        self, prompt: Prompt, max_tokens: int | None = None, sampling: Sampling = GREEDY
    ) -> Iterator[int]:
        """Tokens that continue `prompt`; see `Conversation.generate_tokens`."""
        with self.conversation() as conversation:
            yield from conversation.generate_tokens(prompt, max_tokens, sampling)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [len(tokens), vocab_size] of a text from its start; row i follows tokens[i]."""
        with self.conversation() as conversation:
            return conversation.logits(tokens)

    def profile(self, events: int = 0) -> Profile:
        """Count from now on where the time of all steps goes; see runtime/profile.py."""
        return Profile(self._native, events)

    def close(self) -> None:
        """Stop all generation, join the threads and free the memory; may be called twice."""
        self._native.close()
        self.tokenizer.close()
