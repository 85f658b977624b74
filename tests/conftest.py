"""Texts kept beside the tests (`--update-golden` writes them), and a small model that chats."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden texts instead of comparing"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden("fuse.graph", text)`: equal to the file of that name in the test's goldens/."""
    folder = Path(str(request.path)).parent / "goldens"
    update = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path = folder / name
        if update:
            folder.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no {path.name} yet: run pytest with --update-golden"
        assert text == path.read_text(encoding="utf-8"), "if this is meant: --update-golden"

    return check


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """`load_script("fuzz")`: the file of that name in scripts/ as a module."""
    sys.path.append(str(SCRIPTS))
    return importlib.import_module


CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with a chat template, and with generation settings of its own."""
    from ondevice.recipe import load_recipe

    home = tmp_path_factory.mktemp("chat") / "chatty"
    shutil.copytree(load_recipe("stories260k").model, home)
    config = home / "tokenizer_config.json"
    table = json.loads(config.read_text()) | {"chat_template": CHAT_TEMPLATE}
    config.write_text(json.dumps(table))
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 40, "eos_token_id": 2}
    (home / "generation_config.json").write_text(json.dumps(sampling))
    return home


@pytest.fixture(scope="session")
def chat_bundle(chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle. It has 512 tokens of context, answers with stories, and ends none of them."""
    from ondevice.build import build
    from ondevice.recipe import load_recipe

    recipe = load_recipe("stories260k", model=chat_checkpoint)
    return build(recipe, tmp_path_factory.mktemp("chat") / "chatty.bundle")


class Terminal:
    """A command in a terminal of its own, typed to and read as a user would."""

    def __init__(self, *arguments: str | Path) -> None:
        self._screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ondevice", *map(str, arguments)],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=os.environ | {"TERM": "dumb", "INPUTRC": "/dev/null"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(inside, termios.TIOCSCTTY, 0),  # for Ctrl-C
        )
        os.close(inside)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, text: str, timeout_s: float = 60.0) -> str:
        """What is shown up to and with `text`, which is taken away."""
        end = time.monotonic() + timeout_s
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come, but {self.shown!r}"
            if select.select([self._screen], [], [], left)[0]:
                self.shown += os.read(self._screen, 4096).decode().replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def interrupt(self) -> None:
        """Ctrl-C at a prompt. Python misses one that comes after it has looked for signals and
        before it waits for a key, just behind the prompt; so give it the time."""
        time.sleep(0.5)
        self.type("\x03")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    """`open_terminal("chat", bundle)`."""
    opened: list[Terminal] = []

    def start(*arguments: str | Path) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()
