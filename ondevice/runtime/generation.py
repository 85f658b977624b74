"""One answer while it comes: read it as text or as tokens, leave it at any time."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import CONTINUES, SKIP_SPECIAL, Status
from ondevice.runtime.native import NativeConversation
from ondevice.runtime.sampling import Sampling, TokenLogprobs
from ondevice.runtime.tokenizer import Tokenizer

_NO_LIMIT = 2**31 - 1
_GOES_ON = (Status.OK, Status.TIMEOUT)


class Generation:
    """What a conversation generates on `prompt`; it has been submitted when this returns.

    Read it once, with `text` or with `tokens`. `ending` is None until it has ended, and how it
    ended then. Leaving the iterator early cancels, and the conversation forgets what was not
    yielded. `max_tokens` None: to the end of the context, which is no error then.
    """

    def __init__(
        self,
        native: NativeConversation,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling,
        *,
        continues: bool,
    ) -> None:
        self.ending: Status | None = None
        self.generated: list[int] = []  # the tokens read so far
        self.logprobs: list[TokenLogprobs] = []  # theirs, where the sampling asks for them
        self._native = native
        self._tokenizer = tokenizer
        self._continues = continues
        self._with_logprobs = sampling.logprobs is not None
        self._bounded = max_tokens is not None
        self._start = native.length + len(prompt)
        native.submit(
            prompt,
            _NO_LIMIT if max_tokens is None else max_tokens,
            sampling,
            tokenizer=tokenizer.handle.value,
            text_flags=SKIP_SPECIAL | CONTINUES * continues,
        )

    def tokens(self) -> Generator[int, None, None]:
        """The tokens. Raises RuntimeFailure where the context or the KV cache is full too early."""
        yielded = 0
        try:
            while self.ending is None:
                status = self._read_tokens(timeout_ms=100)
                for token in self.generated[yielded:]:
                    yielded += 1
                    yield token
                if status not in _GOES_ON:
                    self.ending = status
        finally:
            if self.ending is None:
                self._cancel()
                self._forget(yielded)
        self._raise_if_unfinished()

    def text(self) -> Generator[str, None, None]:
        """The text in pieces of whole characters, without special tokens and stop strings.

        Raises RuntimeFailure as `tokens` does.
        """
        shown = ""
        try:
            while self.ending is None:
                status, piece = self._native.read_text()
                self._drain()
                if piece:
                    shown += piece
                    yield piece
                if status not in _GOES_ON:
                    self.ending = status
        finally:
            if self.ending is None:
                self._cancel()
                self._forget(self._tokens_of(shown))
        self._raise_if_unfinished()

    def _read_tokens(self, timeout_ms: int) -> Status:
        """Move the tokens that are there to `generated`."""
        if self._with_logprobs:
            status, logprobs = self._native.read_logprobs(timeout_ms=timeout_ms)
            self.logprobs += logprobs
            self.generated += (entry.token for entry in logprobs)
        else:
            status, tokens = self._native.read(timeout_ms=timeout_ms)
            self.generated += tokens
        return status

    def _drain(self) -> None:
        while self._read_tokens(timeout_ms=0) is Status.OK:
            pass

    def _tokens_of(self, text: str) -> int:
        """The number of tokens that it takes to say `text`."""
        stream = self._tokenizer.stream(continues=self._continues)
        said = 0
        for count, token in enumerate(self.generated):
            if said >= len(text):
                return count
            said += len(stream.add(token))
        return len(self.generated)

    def _cancel(self) -> None:
        """Bring the conversation to rest, unless it is closed."""
        try:
            self._native.cancel()
            while self._read_tokens(timeout_ms=100) in _GOES_ON:
                pass
        except RuntimeFailure as error:
            if error.status not in (Status.CLOSED, Status.FORKED):
                raise

    def _forget(self, kept: int) -> None:
        """Rewind the conversation to the first `kept` tokens of the answer."""
        try:
            self._native.rewind(min(self._start + kept, self._native.length))
            del self.generated[kept:], self.logprobs[kept:]
        except RuntimeFailure as error:
            if error.status not in (Status.CLOSED, Status.FORKED):
                raise

    def _raise_if_unfinished(self) -> None:
        bad = (Status.KV_FULL, Status.CONTEXT_FULL) if self._bounded else (Status.KV_FULL,)
        if self.ending is not None and self.ending in bad:
            raise RuntimeFailure(self._native.explain(), int(self.ending))
