"""pyproject.toml lists what there is: every package, in every table that names packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MAPPED = ("apps", "kernels", "recipes")  # top-level folders that install under ondevice


def pyproject() -> dict[str, dict[str, dict[str, object]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_installed() -> None:
    inside = (p.parent.relative_to(ROOT) for p in (ROOT / "ondevice").rglob("__init__.py"))
    mapped = (p.parent.relative_to(ROOT) for d in MAPPED for p in (ROOT / d).rglob("__init__.py"))
    names = {".".join(p.parts) for p in inside}
    names |= {".".join(("ondevice", *p.parts)) for p in mapped}
    assert sorted(names) == pyproject()["tool"]["setuptools"]["packages"]


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")))
def test_documents_name_files_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    names = re.findall(r"`((?:ondevice|kernels|recipes|apps|scripts|docs|tests)/[^`]*)`", text)
    missing = [name for name in names if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == []
