"""Environment variables are typed and listed; dumps number their stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice import debug
from ondevice.errors import OndeviceError


def test_stages_are_numbered_and_of_one_build(tmp_path: Path) -> None:
    dump = debug.Dump(tmp_path / "d")
    for name in ("trace", "fold", "fuse"):
        dump.stage(name, "graph", name)
    dump.file("kernels/gemv.kir", "kernel gemv\n")
    dump = debug.Dump(tmp_path / "d")
    assert dump.stage("trace", "graph", "text").read_text() == "text\n"
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["00-trace.graph"]


def test_a_dump_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OndeviceError, match="cannot dump into"):
        debug.Dump(tmp_path / "file")


def test_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in debug.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert (debug.threads(), debug.runtime_library(), debug.traceback()) == (0, None, False)
    monkeypatch.setenv("ONDEVICE_THREADS", "2")
    monkeypatch.setenv("ONDEVICE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("ONDEVICE_RUNTIME_LIBRARY", "lib.so")
    assert (debug.threads(), debug.cache_dir()) == (2, tmp_path)
    assert debug.runtime_library() == Path("lib.so")
    monkeypatch.setenv("ONDEVICE_THREADS", "two")
    with pytest.raises(OndeviceError, match="must be a number of threads"):
        debug.threads()


def test_only_debug_reads_the_environment() -> None:
    package = Path(debug.__file__).parent
    readers = {
        path.name
        for path in package.rglob("*.py")
        if "os.environ" in path.read_text() or "os.getenv" in path.read_text()
    }
    assert readers == {"debug.py"}
