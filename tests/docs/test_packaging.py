"""pyproject.toml lists what there is: every package, in every table that names packages."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def pyproject() -> dict[str, dict[str, dict[str, object]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_installed() -> None:
    inside = (p.parent.relative_to(ROOT) for p in (ROOT / "ondevice").rglob("__init__.py"))
    mapped = (p.parent.relative_to(ROOT) for d in MAPPED for p in (ROOT / d).rglob("__init__.py"))
    names = {".".join(p.parts) for p in inside}
    names |= {".".join(("ondevice", *p.parts)) for p in mapped}
    assert sorted(names) == pyproject()["tool"]["setuptools"]["packages"]


MAPPED = ("apps", "kernels", "recipes")


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "docs"])
def test_docs_name_files_that_exist(path: str) -> None:
    """Every `folder/file.ext` in backquotes in the documents is there."""
    import re

    files = sorted((ROOT / path).glob("*.md")) if path == "docs" else [ROOT / path]
    for file in files:
        for name in re.findall(r"`([a-z.][\w.]*/[\w./]*\.(?:py|toml|c|h|md))`", file.read_text()):
            assert (ROOT / name).exists() or (ROOT / "ondevice" / name).exists(), (file, name)
