"""`ondevice chat`: in a terminal, through a pipe, and its commands."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import ondevice
from ondevice.cli import chat as chat_command
from ondevice.cli.chat_session import ChatError, ChatSession
from ondevice.errors import OndeviceError
from ondevice.runtime.engine import Engine

QUESTION = "Tell me a story."


def pipe(bundle: Path, text: str | bytes, *options: str) -> subprocess.CompletedProcess[str]:
    data = text.encode() if isinstance(text, str) else text
    command = [sys.executable, "-P", "-m", "ondevice", "chat", str(bundle), *options]
    done = subprocess.run(command, input=data, capture_output=True, timeout=300)
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(command, done.returncode, out, err)


# ---- through a pipe ----


def test_a_pipe_gets_answers_alone(chat_bundle: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "24")
    done = pipe(chat_bundle, f"{QUESTION}\n/stats\nGo on.\n/stats\n", *options)
    assert done.returncode == 0, done.stderr
    with ondevice.load(chat_bundle) as engine:
        messages = [{"role": "user", "content": QUESTION}]
        answers = []
        for following in ("Go on.", ""):
            made = engine.chat.completions.create(messages, temperature=0, max_tokens=24)
            answers.append(made.choices[0].message.content)
            messages.append({"role": "assistant", "content": answers[-1]})
            messages.append({"role": "user", "content": following})
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)
    first, second = re.findall(r"prompt of (\d+) tokens: (\d+) reused, (\d+) computed", done.stderr)
    assert first[1] == "0" and int(first[0]) + 23 == int(second[1])
    assert int(second[0]) == int(second[1]) + int(second[2])


def test_bad_input_is_one_line_and_the_chat_goes_on(chat_bundle: Path) -> None:
    done = pipe(
        chat_bundle,
        b"a\xff\n"
        + b"long " * 2000
        + b"\n/set temperature=nan\nHi\n/set temperature=0\nHi\n/exit\nX",
        *("--max-tokens", "5"),
    )
    assert done.returncode == 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no UTF-8" in errors[0]
    assert "the context is 512; leave some out" in errors[1]
    assert "temperature is not a number" in errors[2]
    assert len(errors) == 3 and len(done.stdout.splitlines()) >= 1


def test_several_lines(chat_bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    text = f'one\\\ntwo\n"""\nthree\n  /four\n"""\n"""five"""\n /six\n/save {saved}\n'
    assert pipe(chat_bundle, text, "--max-tokens", "2").returncode == 0
    messages = json.loads(saved.read_text())["messages"]
    said = [m["content"] for m in messages if m["role"] == "user"]
    assert said == ["one\ntwo", "three\n  /four", "five", " /six"]


def test_without_a_template_it_continues_raw_prompts(stories: Path) -> None:
    done = pipe(stories, "Once upon\n", "--max-tokens", "20")
    assert done.stdout.startswith(" a time, there was a little girl named Lily.")
    assert "This bundle takes raw prompts only (the checkpoint has none)" in done.stderr


# ---- in a terminal ----


def test_a_terminal(chat_bundle: Path, open_terminal: Callable[..., Any], tmp_path: Path) -> None:
    terminal = open_terminal("chat", chat_bundle, "--temperature", "0", "--max-tokens", "24")
    assert "/help shows the commands" in terminal.wait_for(">>> ")
    terminal.type("/stats\n")
    assert "Nothing has been answered yet." in terminal.wait_for(">>> ")
    terminal.type(f"{QUESTION}\n")
    answer = terminal.wait_for(">>> ").split("\n", 1)[1]
    assert len(answer) > 30 and "</s>" not in answer
    terminal.type('"""\n')
    terminal.wait_for("... ")
    terminal.type('Go on."""\n')
    terminal.wait_for(">>> ")
    terminal.type("/stats\n")
    assert re.search(r"[1-9]\d* reused, \d+ computed", terminal.wait_for(">>> "))
    terminal.type(f"/save {tmp_path / 'chat.json'}\n")
    assert "4 messages are in" in terminal.wait_for(">>> ")
    terminal.type("/foo\n")
    assert "error: unknown command /foo" in terminal.wait_for(">>> ")
    terminal.type("/exit\n")
    assert terminal.process.wait(timeout=30) == 0


def test_ctrl_c_twice_leaves(chat_bundle: Path, open_terminal: Callable[..., Any]) -> None:
    terminal = open_terminal("chat", chat_bundle)
    terminal.wait_for(">>> ")
    terminal.type("half a li")
    terminal.interrupt()
    assert "Ctrl-C again leaves" in terminal.wait_for(">>> ")
    terminal.type("/set seed=4\n")  # one in between: the next is the first again
    assert "Set: seed=4" in terminal.wait_for(">>> ")
    terminal.interrupt()
    terminal.wait_for("Ctrl-C again leaves")
    terminal.wait_for(">>> ")
    terminal.interrupt()
    assert terminal.process.wait(timeout=30) == 130


def test_ctrl_d_leaves(chat_bundle: Path, open_terminal: Callable[..., Any]) -> None:
    terminal = open_terminal("chat", chat_bundle)
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=30) == 0


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter([QUESTION, "/stats", None])

    def interrupted(self: ChatSession) -> Generator[str, None, None]:
        yield "One day"
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatSession, "_chat", interrupted)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    terminal = chat_command.Terminal(session)
    monkeypatch.setattr(terminal, "_read", lambda: next(lines))
    terminal.run()
    shown = capsys.readouterr()
    assert shown.out == "One day\n"
    assert "stopped" in shown.err
    assert [m["content"] for m in session.messages] == [QUESTION, "One day"]


# ---- the session ----


@pytest.fixture(scope="module")
def engine(chat_bundle: Path) -> Iterator[Engine]:
    with ondevice.load(chat_bundle, threads=1) as engine:
        yield engine


@pytest.fixture
def session(engine: Engine) -> ChatSession:
    session = ChatSession(engine)
    session.settings = {"temperature": 0.0, "max_tokens": 12}
    return session


def test_leaving_an_answer_keeps_what_was_said(session: ChatSession) -> None:
    whole = "".join(session.reply(QUESTION))
    session.command("/reset")
    pieces = session.reply(QUESTION)
    first = next(pieces)
    pieces.close()
    assert session.messages[1] == {"role": "assistant", "content": first}
    assert whole.startswith(first) and session.stats is not None


def test_a_refused_message_is_not_remembered(session: ChatSession) -> None:
    before = list(session.reply(QUESTION))
    for text in ("x" * 1_000_000, "a\udcff"):
        with pytest.raises(OndeviceError):
            list(session.reply(text))
        assert len(session.messages) == 2
    assert before


def test_system_set_and_reset(session: ChatSession) -> None:
    assert session.command("/system Be brief.") == "The system message is set."
    list(session.reply(QUESTION))
    assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]
    session.command("/reset")
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    assert session.command("/system") == "No system message."
    assert session.messages == []
    assert session.command("/set top_k = 3") == "Set: temperature=0.0, max_tokens=12, top_k=3"
    session.command("/set max_tokens=")
    assert session.settings == {"temperature": 0.0, "top_k": 3}
    assert session.command("/exit") is None
    assert all(name in str(session.command("/help")) for name in ("/load", "top_p", '"""'))


def test_save_and_load(session: ChatSession, engine: Engine, tmp_path: Path) -> None:
    list(session.reply(QUESTION))
    path = tmp_path / "chat.json"
    session.command(f"/save {path}")
    other = ChatSession(engine)
    assert other.command(f"/load {path}") == "2 messages are here again."
    assert (other.messages, other.settings) == (session.messages, session.settings)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/sate", "unknown command /sate; did you mean '/save'"),
        ("/set temprature=1", "unknown setting 'temprature'; did you mean 'temperature'"),
        ("/set temperature", "write /set name=value"),
        ("/set top_k=many", "top_k must be a whole number, not 'many'"),
        ("/save", "name a file"),
        ("/save /nowhere/chat.json", "cannot write /nowhere/chat.json: No such file"),
        ("/load /nowhere", "cannot read /nowhere: No such file"),
        ("/load {bad}", "is no chat that /save has written"),
    ],
)
def test_commands_that_mean_nothing(
    session: ChatSession, tmp_path: Path, command: str, words: str
) -> None:
    bad = tmp_path / "bad.json"
    for text in ("{", "[]", '{"format": "ondevice-chat", "version": 1, "messages": [1]}'):
        bad.write_text(text)
        with pytest.raises(ChatError, match=words):
            session.command(command.format(bad=bad))
