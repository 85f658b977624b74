"""What a build writes, shows and refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from llvmlite import binding as llvm

from ondevice.build import build
from ondevice.bundle.program_text import parse_program, print_program
from ondevice.debug import Dump
from ondevice.errors import KernelError, RecipeError
from ondevice.graph.text import parse_graph, print_graph
from ondevice.kernels import LIBRARY
from ondevice.lang import f32, kernel, load, parallel, store
from ondevice.lang.library import Library
from ondevice.lang.text import parse_kernel, print_kernel
from ondevice.passes import PASS_NAMES
from ondevice.recipe import load_recipe

from .conftest import Build

STAGES = ("trace", *(name for name in PASS_NAMES if name != "schedule"), "program")


def stages(dump: Path) -> list[str]:
    """The numbered files of a dump, in order, without their kind."""
    return sorted(path.stem for path in dump.glob("[0-9][0-9]-*"))


def test_dump_shows_every_stage(built: Build) -> None:
    assert stages(built().dump) == [f"{i:02}-{name}" for i, name in enumerate(STAGES)]


def print_llvm(text: str) -> str:
    """LLVM accepts the module; its own printer writes it differently."""
    llvm.parse_assembly(text).verify()
    return text


def print_kernels(text: str) -> str:
    """A kernel, or those of several CPU variants."""
    return "\n".join(print_kernel(parse_kernel(one)) for one in re.split(r"\n(?=def )", text))


READERS: dict[str, Callable[[str], str]] = {
    "*.graph": lambda text: print_graph(parse_graph(text)),
    "*-program.txt": lambda text: print_program(parse_program(text)),
    "kernels/*.kir": print_kernels,
    "kernels/*.ll": print_llvm,
}


@pytest.mark.parametrize("pattern", READERS)
def test_dumped_texts_parse_back(built: Build, pattern: str) -> None:
    paths = list(built().dump.glob(pattern))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert READERS[pattern](text) == text, path.name


@pytest.mark.parametrize("stop", PASS_NAMES)
def test_stopping_early_writes_no_bundle(tmp_path: Path, stop: str) -> None:
    dump = tmp_path / "dump"
    recipe = load_recipe("stories260k")
    assert build(recipe, tmp_path / "none.bundle", Dump(dump), stop_after=stop) == dump
    assert stages(dump)[-1].split("-")[1] == ("program" if stop == "schedule" else stop)
    assert list(tmp_path.iterdir()) == [dump]


def test_unknown_pass_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe("stories260k", settings=["passes.disable=fuze"])
    with pytest.raises(RecipeError, match="unknown pass 'fuze'; did you mean 'fuse'"):
        build(recipe, tmp_path / "none.bundle")


@kernel
def wrong_select_rows(x: f32[S, K], rows: i32[L], y: f32[L, K]):  # noqa: F821
    """Copies rows, but takes their numbers for indices"""
    for l in parallel(L):  # noqa: F821
        store(y, l, 0, load(x, rows[l], 0, lanes=16))


def test_wrong_kernel_is_shown_with_a_caret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(LIBRARY.kernels["select_rows"], function=wrong_select_rows)
    library = Library({**LIBRARY.kernels, "select_rows": row}, LIBRARY.steps)
    monkeypatch.setattr("ondevice.build.LIBRARY", library)
    with pytest.raises(KernelError) as caught:
        build(load_recipe("stories260k"), tmp_path / "none.bundle")
    message, source, caret = str(caught.value).splitlines()
    assert message.startswith(__file__)
    assert source[caret.index("^") :].startswith("load(x, rows[l]")
    assert not (tmp_path / "none.bundle").exists()
