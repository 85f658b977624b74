"""Mistakes are one line on stderr, exit codes tell kinds of ends apart, help is quick."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Ondevice = Callable[..., subprocess.CompletedProcess[str]]


COMMANDS = "build run chat demo inspect verify eval bench recipes targets doctor".split()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(ondevice: Ondevice, command: str) -> None:
    assert command in ondevice("--help").stdout
    done = ondevice(command, "--help")
    assert done.returncode == 0
    assert f"ondevice {command}" in done.stdout


def test_version(ondevice: Ondevice) -> None:
    from ondevice import __version__

    assert ondevice("--version").stdout == f"ondevice {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ondevice.cli.main import app; app(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'llvmlite', 'tokenizers', 'torch', 'rich', 'tqdm', 'huggingface_hub'}"
        " & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "storys260k"], "did you mean 'stories260k'"),
        (["build", "stories260k", "--set", "quant.defalt=f32"], "did you mean 'default'"),
        (["build", "stories260k", "--target", "linux-x86-64"], "did you mean 'linux-x86_64'"),
        (["run", "nowhere.bundle", "--prompt", "x"], "nowhere.bundle does not exist"),
        (["inspect", "."], "it has no manifest.json"),
        (["verify", "."], "it has no manifest.json"),
    ],
)
def test_an_error_is_one_line(ondevice: Ondevice, arguments: list[str], message: str) -> None:
    done = ondevice(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ondevice: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["biuld"],
        ["run"],
        ["run", "x", "--temperature", "-1"],
        ["build", "x", "--stop-after", "fold"],
    ],
)
def test_wrong_usage_exits_with_2(ondevice: Ondevice, arguments: list[str]) -> None:
    assert ondevice(*arguments).returncode == 2


def test_variables_that_nobody_reads_are_refused(
    ondevice: Ondevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONDEVICE_CACHEDIR", "/tmp")
    assert "did you mean 'ONDEVICE_CACHE_DIR'" in ondevice("--version").stderr


def test_the_traceback_is_there_when_asked_for(
    ondevice: Ondevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONDEVICE_TRACEBACK", "1")
    assert "Traceback" in ondevice("inspect", ".").stderr


def test_interrupt_exits_with_130(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", READ_STDIN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()  # the command is about to read its prompt
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert "Traceback" not in process.stderr.read()


# Says that it is ready from inside the command, where main() catches what comes.
READ_STDIN = """
import sys, time
from ondevice.cli.main import main

class Prompt:
    def isatty(self):
        return False
    @property
    def buffer(self):
        return self

    def read(self):
        print("ready", flush=True)
        time.sleep(60)

sys.stdin = Prompt()
sys.argv = ["ondevice", "run", "x.bundle"]
main()
"""
