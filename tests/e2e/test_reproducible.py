"""A recipe says every byte of its bundle: no directory, number, clock or cache shows in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numpy._core import _multiarray_umath as numpy_core

import ondevice
from ondevice.build import build
from ondevice.quant.scheme import SCHEMES
from ondevice.recipe import load_recipe

STORIES = Path(__file__).parents[2] / "recipes" / "stories260K"
SETTINGS = [f"quant.default={name}" for name in SCHEMES]

ELSEWHERE = """
import os, sys
from pathlib import Path
os.umask(0o077)
os.cpu_count = lambda: 7
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from ondevice.build import build
from ondevice.recipe import load_recipe
model, out, *settings = sys.argv[1:]
for setting in settings:
    build(load_recipe("stories260k", model=model, settings=[setting]), Path(out, setting))
"""


def contents(bundle: Path) -> dict[Path, tuple[bytes, bool]]:
    """Bytes of every file, and whether it may be executed."""
    files = (path for path in bundle.rglob("*") if path.is_file())
    return {
        path.relative_to(bundle): (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for path in files
    }


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All bundles from another process, which differs in all that must not matter.

    Its cache of compiled objects is empty, and NumPy runs none of its faster loops.
    """
    home = tmp_path_factory.mktemp("elsewhere")
    model, out, temporary = home / "a copy", home / "out", home / "temporary"
    model.mkdir()
    for path in STORIES.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    temporary.mkdir()
    features = numpy_core.__cpu_features__
    found = [name for name in numpy_core.__cpu_dispatch__ if features.get(name)]
    environment = {
        **os.environ,
        "HOME": str(home),
        "LC_ALL": "C",
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "ONDEVICE_CACHE_DIR": str(home / "cache"),
        "PYTHONHASHSEED": "12345",
        "SOURCE_DATE_EPOCH": "1000000000",
        "TMPDIR": str(temporary),
        "TZ": "Pacific/Kiritimati",
    }
    command = [sys.executable, "-P", "-c", ELSEWHERE, str(model), str(out), *SETTINGS]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_process_writes_the_same_bytes(
    setting: str, elsewhere: Path, tmp_path: Path
) -> None:
    here = build(load_recipe("stories260k", settings=[setting]), tmp_path / "other name.bundle")
    expected = contents(here)
    assert contents(elsewhere / setting) == expected
    assert sum(executable for _, executable in expected.values()) == 1


def test_no_file_names_a_place(elsewhere: Path) -> None:
    """Nor the clock, nor who built it."""
    package = str(Path(ondevice.__file__).parent)
    for place in (str(elsewhere.parent), package, str(STORIES), sys.prefix, "Kiritimati"):
        for path, (data, _) in contents(elsewhere / SETTINGS[0]).items():
            assert place.encode() not in data, f"{path} names {place}"
