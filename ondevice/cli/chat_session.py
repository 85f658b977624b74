"""A chat as a value: its messages, its settings, and the commands that begin with a slash."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ondevice.errors import OndeviceError, nearest

if TYPE_CHECKING:
    from ondevice.runtime.engine import Engine
    from ondevice.runtime.native import ConversationStats

HELP = '''\
/help         this list
/exit         leave; so do Ctrl-D, and Ctrl-C twice
/reset        forget the messages; settings and system message stay
/stats        what the last answer took
/set K=V      change a setting; K= without V is the model's own again; alone shows what is set
              {settings}
/system TEXT  say who the model is; without TEXT, no longer
/save FILE    write messages and settings as JSON
/load FILE    go on from such a file
A line that ends with \\ goes on in the next. """ begins a text of several lines and ends it.
A line that begins with a space is never a command. Ctrl-C stops an answer.'''

SETTINGS: dict[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
    "timeout": float,
    "stop": str,
}
_WRAPPED = textwrap.fill(" ".join(SETTINGS), 72, subsequent_indent=" " * 14)
RAW_MAX_TOKENS = 256  # of an answer to a raw prompt, which may have no end
_FORMAT = "ondevice-chat"


class ChatError(OndeviceError):
    """A command that means nothing, or a file that cannot be read or written."""


class ChatSession:
    """Messages to a model and its answers.

    Where the bundle has no chat template, the messages are one growing text without roles.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokenizer = engine.bundle.manifest.tokenizer
        self.messages: list[dict[str, str]] = []
        if system := engine.bundle.manifest.prompt.system:
            self.command(f"/system {system}")
        self.settings: dict[str, Any] = {}
        self.stats: ConversationStats | None = None
        self.cut = ""  # why the last answer ended before its end

    @property
    def raw(self) -> bool:
        return self._tokenizer.chat_template is None

    def greeting(self) -> str:
        """What the bundle is, and in one sentence what it lacks."""
        info = self._engine.info
        lines = [
            f"{info.model}, context of {info.context_tokens} tokens, {info.variant}. "
            "/help shows the commands."
        ]
        if self.raw:
            found = (n for n in self._tokenizer.notes if n.startswith("no chat template"))
            why = next(found, "no chat template").removeprefix("no chat template: ")
            lines.append(
                f"This bundle takes raw prompts only ({why}): the model continues what you write."
            )
        return "\n".join(lines)

    def reply(self, text: str) -> Generator[str, None, None]:
        """Pieces of the model's answer to `text`; leaving the iterator stops it there.

        What was said so far is remembered; with nothing said, `text` is not. Raises OndeviceError.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        self.cut = ""
        try:
            with contextlib.closing(self._raw() if self.raw else self._chat()) as pieces:
                for piece in pieces:
                    said.append(piece)
                    yield piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()

    def command(self, line: str) -> str | None:
        """Carry out a line that begins with a slash; its answer, or None to leave.

        Raises ChatError.
        """
        name, _, rest = line.strip().partition(" ")
        commands = {
            "/help": lambda _: HELP.format(settings=_WRAPPED),
            "/exit": lambda _: None,
            "/reset": self._reset,
            "/stats": self._stats,
            "/set": self._set,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
        }
        if name not in commands:
            raise ChatError(f"unknown command {name}{nearest(name, commands)}")
        return commands[name](rest.strip())

    # ---- answers ----

    def _chat(self) -> Generator[str, None, None]:
        completions = self._engine.chat.completions
        with completions.create(self.messages, stream=True, **self.settings) as stream:
            try:
                for chunk in stream:
                    (choice,) = chunk.choices
                    if choice.delta.content:
                        yield choice.delta.content
                    if choice.finish_reason == "length":
                        self.cut = "cut"
            finally:
                stream.close()
                self.stats = stream.stats[-1] if stream.stats else None

    def _raw(self) -> Generator[str, None, None]:
        from ondevice.runtime.request import read_sampling

        settings = {"max_tokens": RAW_MAX_TOKENS} | self.settings
        sampling = read_sampling(settings, self._engine.chat_sampling)
        text = "".join(message["content"] for message in self.messages)
        with self._engine.conversation() as conversation:
            try:
                yield from conversation.generate(text, settings["max_tokens"], sampling)
            finally:
                self.stats = conversation.stats

    # ---- commands ----

    def _reset(self, _: str) -> str:
        self.messages = [m for m in self.messages if m["role"] == "system"]
        return "The messages are forgotten."

    def _stats(self, _: str) -> str:
        stats = self.stats
        if stats is None:
            return "Nothing has been answered yet."
        return (
            f"prompt of {stats.prompt_tokens} tokens: {stats.reused_tokens} reused, "
            f"{stats.computed_tokens} computed; first token after {stats.first_token_ms:.0f} ms\n"
            f"answer of {stats.generated_tokens} tokens, {stats.tokens_per_second:.1f} tokens per "
            "second"
        )

    def _set(self, text: str) -> str:
        if text:
            name, sign, value = (part.strip() for part in text.partition("="))
            if not sign:
                raise ChatError("write /set name=value")
            if name not in SETTINGS:
                raise ChatError(f"unknown setting {name!r}{nearest(name, SETTINGS)}")
            self.settings.pop(name, None)
            if value:
                self.settings[name] = _parse(name, value)
        shown = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"Set: {shown}" if shown else "All settings are the model's own."

    def _system(self, text: str) -> str:
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if not text:
            return "No system message."
        self.messages.insert(0, {"role": "system", "content": text})
        return "The system message is set."

    def _save(self, name: str) -> str:
        path = _path(name)
        table = {
            "format": _FORMAT,
            "version": 1,
            "model": self._engine.bundle.manifest.name,
            "messages": self.messages,
            "settings": self.settings,
        }
        try:
            _write(path, json.dumps(table, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ChatError(f"cannot write {path}: {error.strerror}") from error
        return f"{len(self.messages)} messages are in {path}."

    def _load(self, name: str) -> str:
        path = _path(name)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            if table["format"] != _FORMAT or table["version"] != 1:
                raise ValueError
            messages = [{"role": m["role"], "content": m["content"]} for m in table["messages"]]
            texts = [text for message in messages for text in message.values()]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError
            settings = {name: _parse(name, str(v)) for name, v in table["settings"].items()}
        except OSError as error:
            raise ChatError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChatError(f"{path} is no chat that /save has written") from error
        self.messages, self.settings = messages, settings
        return f"{len(messages)} messages are here again."


def _parse(name: str, value: str) -> Any:
    try:
        return SETTINGS[name](value)
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        raise ChatError(f"{name} must be {kind}, not {value!r}") from None


def _path(name: str) -> Path:
    if not name:
        raise ChatError("name a file")
    return Path(name).expanduser()


def _write(path: Path, text: str) -> None:
    """All or nothing."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
