"""Texts kept beside the tests: `golden(name, text)` compares, `--update-golden` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
