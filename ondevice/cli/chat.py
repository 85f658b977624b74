"""`ondevice chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ondevice.errors import OndeviceError

if TYPE_CHECKING:
    from ondevice.cli.chat_session import ChatSession

PROMPT, MORE = ">>> ", "... "
BLOCK = '"""'


def chat(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Who the model shall be.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="0 takes the likeliest token; the model's own by default."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same answers.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop each answer after so many tokens.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Worker threads; one per core by default.")
    ] = None,
) -> None:
    """Talk to the model in BUNDLE. Answers go to standard output, all else to standard error
    where the input is no terminal; /help lists the commands."""
    import ondevice
    from ondevice.cli.chat_session import ChatSession

    given = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}
    with ondevice.load(bundle, threads=threads) as engine:
        session = ChatSession(engine)
        session.settings |= {name: value for name, value in given.items() if value is not None}
        if system:
            session.command(f"/system {system}")
        Terminal(session).run()


class Terminal:
    """Reads what a user writes, line by line, and prints answers as they come."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._tty = sys.stdin.isatty()
        self._reading = False
        self._notes: TextIO = sys.stdout if self._tty else sys.stderr
        # Bytes that are no UTF-8 reach the tokenizer, which says where they are.
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        if self._tty:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() its line editing and history

    def run(self) -> None:
        """Until /exit, the end of the input, or a second Ctrl-C in a row (KeyboardInterrupt)."""
        self._note(self._session.greeting())
        interrupted = False
        while True:
            try:
                self._reading = True
                text = self._read()
                self._reading = interrupted = False
                if text is None or not self._handle(text):
                    return
            except KeyboardInterrupt:
                if self._tty and self._reading:
                    print()  # leave the prompt's line
                if interrupted:
                    raise
                interrupted = True
                self._note("(Ctrl-C again leaves)" if self._tty else "stopped")
            except OndeviceError as error:
                self._note(f"error: {error}")

    def _handle(self, text: str) -> bool:
        """Carry out or answer; false to leave."""
        if text.startswith("/") and "\n" not in text:
            answer = self._session.command(text)
            if answer is not None:
                self._note(answer)
            return answer is not None
        if text.strip():
            self._answer(text)
        return True

    def _answer(self, text: str) -> None:
        shown = False
        try:
            with contextlib.closing(self._session.reply(text)) as pieces:
                for piece in pieces:
                    shown = True
                    print(piece, end="", flush=True)
        finally:
            if shown:
                print(flush=True)
        if self._session.cut:
            self._note("(cut: max_tokens, the timeout or the context is reached)")

    def _read(self) -> str | None:
        """A line, several joined by \\, or what stands between two \"\"\"; None at the end."""
        line = self._line(PROMPT)
        if line is None:
            return None
        if line.startswith(BLOCK):
            return self._block(line.removeprefix(BLOCK))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            more = self._line(MORE)
            lines.append(more if more is not None else "")
        return "\n".join(lines)

    def _block(self, first: str) -> str:
        lines, line = [], first
        while not line.rstrip().endswith(BLOCK):
            lines.append(line)
            more = self._line(MORE)
            if more is None:
                break
            line = more
        else:
            lines.append(line.rstrip().removesuffix(BLOCK))
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        if self._tty:
            try:
                return input(prompt)
            except EOFError:
                print()
                return None
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)
