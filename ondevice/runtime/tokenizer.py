"""The tokenizer of libondevice in Python: text to tokens and back, and chat prompts.

Everything happens in C; see native/ondevice.h. A tokenizer may be used from several threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import (
    POINTER,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ondevice.bundle.read import Bundle
from ondevice.errors import BundleError, RuntimeFailure
from ondevice.runtime.header import Status

_ENCODE_SPECIAL, _ENCODE_CONTENT, _SKIP_SPECIAL, _CONTINUES = 1, 2, 4, 8
_CHAT_GENERATE, _CHAT_NO_THINKING = 1, 2


class _Error(ctypes.Structure):
    _fields_ = [("text", c_char * 256)]


class _Info(ctypes.Structure):
    _fields_ = [("vocab_size", c_int32), ("piece_bytes", c_int32)]


class _Stream(ctypes.Structure):
    _fields_ = [
        ("tokenizer", c_uint64),
        *((name, c_uint32) for name in ("flags", "stripped", "held", "damaged")),
        ("bytes", c_uint8 * 4096),
    ]


class _Message(ctypes.Structure):
    _fields_ = [("role", c_char_p), ("content", c_char_p), ("bytes", c_int64)]


_TEXT_OUT = [c_void_p, c_int64, POINTER(c_int64)]
_CHAT = [c_char_p, c_int64, POINTER(_Message), c_int32, c_uint32, c_int64]
# Arguments of each function, without the od_error* that all of them end with.
_SIGNATURES: dict[str, list[Any]] = {
    "tokenizer_open": [c_void_p, c_int64, POINTER(c_uint64)],
    "tokenizer_close": [c_uint64],
    "tokenizer_describe": [c_uint64, POINTER(_Info)],
    "encode": [c_uint64, c_char_p, c_int64, c_uint32, *_TEXT_OUT],
    "decode": [c_uint64, c_void_p, c_int64, c_uint32, *_TEXT_OUT],
    "text_stream_open": [c_uint64, c_uint32, POINTER(_Stream)],
    "text_stream_add": [POINTER(_Stream), c_int32, *_TEXT_OUT],
    "text_stream_finish": [POINTER(_Stream), *_TEXT_OUT],
    "chat_render": [*_CHAT, *_TEXT_OUT],
    "chat_encode": [c_uint64, *_CHAT, *_TEXT_OUT],
}

# A message: {"role": ..., "content": ...}.
Message = Mapping[str, str]


class Tokenizer:
    """A compiled tokenizer (`data`, kept) and chat template in the C library at `library`.

    Raises RuntimeFailure, with the runtime's words.
    """

    def __init__(self, library: Path, data: bytes, chat_template: bytes | None = None) -> None:
        loaded = ctypes.CDLL(os.fspath(library.absolute()))
        self._functions = {name: loaded[f"od_{name}"] for name in _SIGNATURES}
        for name, arguments in _SIGNATURES.items():
            self._functions[name].argtypes = [*arguments, POINTER(_Error)]
            self._functions[name].restype = c_int
        self._data = data
        self._chat_template = chat_template
        self.handle = c_uint64()
        self.call("tokenizer_open", data, len(data), byref(self.handle))
        info = _Info()
        self.call("tokenizer_describe", self.handle, byref(info))
        self.vocab_size: int = info.vocab_size
        self.piece_bytes: int = info.piece_bytes

    def call(self, name: str, *arguments: Any) -> None:
        """Call `od_<name>`; raises RuntimeFailure on a status that is not OK."""
        error = _Error()
        status = Status(self._functions[name](*arguments, byref(error)))
        if status is not Status.OK:
            raise RuntimeFailure(error.text.decode(errors="replace"), int(status))

    def encode(
        self, text: str | bytes, *, add_special_tokens: bool = True, content: bool = False
    ) -> list[int]:
        """Tokens of `text`, which may also be given as UTF-8.

        `add_special_tokens` adds what the model expects around a whole text, such as its first
        token; `content` takes control tokens in a text that a user has typed for plain text.
        """
        data = text if isinstance(text, bytes) else _utf8(text)
        flags = _ENCODE_SPECIAL * add_special_tokens | _ENCODE_CONTENT * content
        return self._tokens("encode", self.handle, data, len(data), flags, guess=len(data) + 16)

    def decode(
        self, tokens: Sequence[int], *, skip_special_tokens: bool = True, continues: bool = False
    ) -> str:
        """Text of `tokens`; `continues`: text stands before, so a leading space is kept."""
        flags = _SKIP_SPECIAL * skip_special_tokens | _CONTINUES * continues
        array = _token_array(tokens)
        arguments = self.handle, array, len(tokens), flags
        return self._text("decode", *arguments, guess=8 * len(tokens) + 16)

    def stream(self, *, skip_special_tokens: bool = True, continues: bool = False) -> TextStream:
        """A decoder of tokens as they come."""
        return TextStream(self, _SKIP_SPECIAL * skip_special_tokens | _CONTINUES * continues)

    def chat_text(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        thinking: bool = True,
        now: datetime | None = None,
    ) -> str:
        """The prompt of a conversation, as the model's chat template writes it.

        `generate` ends it with what makes the model answer; `thinking=False` asks models that
        think first not to; `now` is the date for templates that write it.
        """
        arguments = self._chat_arguments(messages, generate, thinking, now)
        guess = sum(m.bytes for m in arguments[2]) + 1024
        return self._text("chat_render", *arguments, guess=guess)

    def chat_tokens(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        thinking: bool = True,
        now: datetime | None = None,
    ) -> list[int]:
        """The same as tokens; no content becomes a control token."""
        arguments = self._chat_arguments(messages, generate, thinking, now)
        guess = sum(m.bytes for m in arguments[2]) + 1024
        return self._tokens("chat_encode", self.handle, *arguments, guess=guess)

    def close(self) -> None:
        """Free the tokenizer; may be called twice."""
        if self.handle.value:
            self.call("tokenizer_close", self.handle)
            self.handle = c_uint64()

    def _chat_arguments(
        self,
        messages: Sequence[Message],
        generate: bool,
        thinking: bool,
        now: datetime | None,
    ) -> tuple[bytes, int, Any, int, int, int]:
        if self._chat_template is None:
            raise RuntimeFailure(
                "this model has no chat template that can be followed exactly: give it a prompt "
                "as text",
                int(Status.INVALID),
            )
        fields = [(_utf8(m["role"]), _utf8(m["content"])) for m in messages]
        array = (_Message * len(fields))(*(_Message(r, text, len(text)) for r, text in fields))
        flags = _CHAT_GENERATE * generate | _CHAT_NO_THINKING * (not thinking)
        clock = (now or datetime.now()).replace(tzinfo=UTC).timestamp()
        data = self._chat_template
        return data, len(data), array, len(fields), flags, int(clock)

    def _tokens(self, name: str, *arguments: Any, guess: int) -> list[int]:
        """What a function writes as tokens; called again where there are more than guessed."""
        while True:
            room, count = (c_int32 * guess)(), c_int64()
            self.call(name, *arguments, room, guess, byref(count))
            if count.value <= guess:
                return room[: count.value]
            guess = count.value

    def _text(self, name: str, *arguments: Any, guess: int) -> str:
        while True:
            room, count = ctypes.create_string_buffer(guess), c_int64()
            self.call(name, *arguments, room, guess, byref(count))
            if count.value <= guess:
                return room.raw[: count.value].decode()
            guess = count.value


def open_tokenizer(bundle: Bundle, library: Path) -> Tokenizer:
    """The tokenizer and chat template of a bundle. Raises BundleError, RuntimeFailure."""
    template = bundle.chat_template_path
    try:
        data = bundle.tokenizer_path.read_bytes()
        return Tokenizer(library, data, None if template is None else template.read_bytes())
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error


class TextStream:
    """Text of tokens as they come; a piece never ends inside a character."""

    def __init__(self, tokenizer: Tokenizer, flags: int) -> None:
        self._tokenizer = tokenizer
        self._state = _Stream()
        self._room = ctypes.create_string_buffer(tokenizer.piece_bytes)
        tokenizer.call("text_stream_open", tokenizer.handle, flags, byref(self._state))

    def add(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        return self._piece("text_stream_add", token)

    def finish(self) -> str:
        """What was held back."""
        return self._piece("text_stream_finish")

    def _piece(self, name: str, *token: int) -> str:
        count = c_int64()
        out = self._room, len(self._room), byref(count)
        self._tokenizer.call(name, byref(self._state), *token, *out)
        return self._room.raw[: count.value].decode()


def _utf8(text: str) -> bytes:
    """`text` as UTF-8; surrogates stay, for the runtime to refuse."""
    return text.encode("utf-8", errors="surrogatepass")


def _token_array(tokens: Sequence[int]) -> Any:
    """Tokens as C has them; a number that is no int32 becomes -1, for the runtime to refuse."""
    fitting = [t if 0 <= t < 2**31 else -1 for t in tokens]
    return (c_int32 * len(fitting))(*fitting)
