"""A bundle appears whole or not at all, and its bytes depend on nothing but its content."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ondevice.bundle import write
from ondevice.bundle.descriptor import WEIGHTS_DATA_START
from ondevice.bundle.format import CHUNK_BYTES
from ondevice.bundle.read import open_bundle
from ondevice.bundle.write import BundleWriter, WeightsFile
from ondevice.errors import BundleError

WriteBundle = Callable[..., Path]


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_two_writes_give_the_same_bytes(write_bundle: WriteBundle, tmp_path: Path) -> None:
    assert contents(write_bundle(tmp_path / "a")) == contents(write_bundle(tmp_path / "b"))


def test_out_appears_only_when_complete(write_bundle: WriteBundle, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "tiny.bundle"
    with BundleWriter(out) as writer:
        writer.add("a", b"1")
        assert not out.exists()
    assert list(out.parent.iterdir()) == []
    write_bundle(out)
    assert [p.name for p in out.parent.iterdir()] == ["tiny.bundle"]


def test_an_error_removes_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError), BundleWriter(tmp_path / "x") as writer:
        writer.add("lib/a", b"1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_build_are_replaced(write_bundle: WriteBundle, tmp_path: Path) -> None:
    stale = tmp_path / "x.partial" / "lib"
    stale.mkdir(parents=True)
    (stale / "junk").write_text("half a library")
    assert "lib/junk" not in contents(write_bundle(tmp_path / "x"))
    assert not (tmp_path / "x.partial").exists()


def test_a_bundle_is_replaced_but_nothing_else_is(
    write_bundle: WriteBundle, tmp_path: Path
) -> None:
    out = write_bundle(tmp_path / "x", bytes(64))
    write_bundle(out, bytes(128))
    assert open_bundle(out).manifest.weights.size_bytes == WEIGHTS_DATA_START + 128
    assert [p.name for p in tmp_path.iterdir()] == ["x"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("irreplaceable")
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1").exists()


def test_replacing_works_where_paths_cannot_be_exchanged(
    write_bundle: WriteBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_exchange", lambda a, b: False)
    out = write_bundle(tmp_path / "x", bytes(64))
    write_bundle(out, bytes(128))
    assert open_bundle(out).manifest.weights.size_bytes == WEIGHTS_DATA_START + 128
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_builds_into_one_place(write_bundle: WriteBundle, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "x"), pytest.raises(BundleError, match="another build"):
        write_bundle(tmp_path / "x")


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")]
)
def test_system_errors_come_with_advice(
    write_bundle: WriteBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    advice: str,
) -> None:
    def refuse(file: int, data: memoryview) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(BundleError, match=advice):
        write_bundle(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_short_writes_lose_nothing(
    write_bundle: WriteBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(write_bundle(tmp_path / "whole"))
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real_write(file, bytes(data)[:100]))
    assert contents(write_bundle(tmp_path / "short")) == whole


def test_weights_are_hashed_in_chunks_of_the_whole_file(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 12345)
    file = WeightsFile(tmp_path / "w", "cd" * 32, len(data))
    for start in range(0, len(data), 1_000_003):
        assert file.offset == start
        file.write(data[start : start + 1_000_003])
    file.complete()
    written = (tmp_path / "w").read_bytes()
    assert written[WEIGHTS_DATA_START:] == data
    pieces = (written[i : i + CHUNK_BYTES] for i in range(0, len(written), CHUNK_BYTES))
    assert file.chunk_sha256 == [hashlib.sha256(piece).hexdigest() for piece in pieces]


def test_weights_must_have_the_announced_length(tmp_path: Path) -> None:
    file = WeightsFile(tmp_path / "w", "cd" * 32, 8)
    file.write(b"1234")
    with pytest.raises(BundleError, match="4 bytes of weights written, not 8"):
        file.complete()
    with pytest.raises(BundleError, match="do not fit"):
        file.write(b"12345")
    file.close()
