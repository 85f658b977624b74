"""Text to tokens and back, over the tokenizer.json of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as TokenizerFile

from ondevice.errors import BundleError

# A character has at most 4 bytes; after that many tokens a replacement character is real.
_HELD_TOKENS = 4
# Tokens of the prompt that the decoder sees: enough to tell a word inside a line from its start.
_CONTEXT_TOKENS = 8
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A tokenizer.json."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = TokenizerFile.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"cannot read {path}: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of `text`, with what the file's post-processor puts around a whole text.

        Without `add_special_tokens` for text that continues another. Special tokens that are
        written out in the text are recognized either way.
        """
        tokens: list[int] = self._file.encode(text, add_special_tokens=add_special_tokens).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._file.decode(list(tokens), skip_special_tokens=True)
        return text


class StreamDecoder:
    """Text of tokens as they come, after a prompt; never half a character."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # Text of _tokens[:_shown] has been handed out. The ones before are kept because how a
        # token reads depends on its neighbours (a leading space, the bytes of a character).
        self._tokens = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = len(self._tokens)

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(_INCOMPLETE) and len(self._tokens) - self._shown < _HELD_TOKENS:
            return ""
        if text:
            self._tokens = self._tokens[self._shown :]
            self._shown = len(self._tokens)
        return text

    def finish(self) -> str:
        """What was held back, without a character that never became whole."""
        return self._new_text().rstrip(_INCOMPLETE)

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._tokens[: self._shown])
        return self._tokenizer.decode(self._tokens)[len(before) :]
