"""A killed build goes on where its bytes are still good, and its bundle is that of any other."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ondevice.bundle import write
from ondevice.bundle.write import BundleWriter
from ondevice.errors import BundleError

from .conftest import ABI, finish

CHUNK = 4096
DATA = random.Random(7).randbytes(10 * CHUNK + 1234)
INPUTS = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "CHUNK_BYTES", CHUNK)


def write_bundle(out: Path, inputs: str = INPUTS, stop_at: int | None = None) -> int:
    """Writes DATA in pieces of 1000 bytes from where the file stands; returns that place."""
    with BundleWriter(out) as writer:
        for name in ("lib/libondevice.so", f"lib/libmodel_{ABI[:16]}.so", "include/ondevice.h"):
            writer.add(name, name.encode())
        writer.add("tokenizer/tokenizer.json", b"{}")
        with writer.weights(ABI, len(DATA), inputs) as file:
            began = file.offset
            for start in range(began, len(DATA), 1000):
                if stop_at is not None and start >= stop_at:
                    raise KeyboardInterrupt
                file.write(DATA[start : start + 1000])
                file.note(f"piece {start}")
        finish(writer, DATA)
    return began


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "CHUNK_BYTES", CHUNK)
        out = tmp_path_factory.mktemp("whole") / "x"
        assert write_bundle(out) == 0
        return contents(out)


def interrupt(out: Path, at: int = 5 * CHUNK + 99) -> Path:
    with pytest.raises(KeyboardInterrupt):
        write_bundle(out, stop_at=at)
    return out.with_name(out.name + ".partial")


def test_an_interrupted_write_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "x"
    interrupt(out)
    assert not out.exists()
    assert write_bundle(out) == 5 * CHUNK - 64  # the header is part of the first chunk
    assert contents(out) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_nothing_worth_keeping_is_not_kept(tmp_path: Path) -> None:
    assert not interrupt(tmp_path / "x", at=CHUNK // 2).exists()


def test_other_inputs_start_afresh(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for other in ("ff" * 32, ""):
        interrupt(tmp_path / "x")
        assert write_bundle(tmp_path / "x", other) == 0
        assert contents(tmp_path / "x") == whole


@pytest.mark.parametrize("chunk", [0, 3, 4])
def test_a_damaged_chunk_and_all_behind_it_are_written_again(
    tmp_path: Path, whole: dict[str, bytes], chunk: int
) -> None:
    weights = interrupt(tmp_path / "x") / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[chunk * CHUNK + 100] ^= 1
    weights.write_bytes(data)
    assert write_bundle(tmp_path / "x") == max(0, chunk * CHUNK - 64)
    assert contents(tmp_path / "x") == whole


@pytest.mark.parametrize("cut", range(0, 900, 41))
def test_a_log_cut_anywhere_is_believed_as_far_as_it_goes(
    tmp_path: Path, whole: dict[str, bytes], cut: int
) -> None:
    log = interrupt(tmp_path / "x") / "weights.log"
    log.write_bytes(log.read_bytes()[:cut])
    began = write_bundle(tmp_path / "x")
    assert began in [max(0, n * CHUNK - 64) for n in range(6)]
    assert contents(tmp_path / "x") == whole


def test_notes_come_back(tmp_path: Path) -> None:
    interrupt(tmp_path / "x")
    with (
        BundleWriter(tmp_path / "x") as writer,
        pytest.raises(BundleError, match="bytes of weights written, not"),
        writer.weights(ABI, len(DATA), INPUTS) as file,
    ):
        assert file.notes[:2] == ("piece 0", "piece 1000")


def test_a_full_disk_keeps_what_is_there(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real_write = 0, os.write

    def fill(file: int, data: bytes | memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > 6 * CHUNK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill)
        with pytest.raises(BundleError, match="the disk is full"):
            write_bundle(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert write_bundle(tmp_path / "x") >= 4 * CHUNK
    assert contents(tmp_path / "x") == whole


def test_a_disk_too_small_is_said_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(BundleError, match="42,194 bytes are missing, 1,000 are free"):
        write_bundle(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# A process that kills itself, as `kill -9` does, at the Nth system call that changes something.
KILLED = """
import os, signal, sys
from pathlib import Path
from ondevice.bundle import write
sys.path.append(sys.argv[3])
from bundle.test_resume import write_bundle

write.CHUNK_BYTES = 4096
left = int(sys.argv[2])

def deadly(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            if name == "write":  # half of it gets through
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(os, name, call)

for name in ("write", "replace", "ftruncate", "fsync", "rename", "pwrite"):
    deadly(name)
write_bundle(Path(sys.argv[1]))
"""


# Calls 9 to 11 start the log, 12 to 76 write pieces and lines, then come the ends; 85 renames.
@pytest.mark.parametrize("deaths", [[1], [9], [11], [30, 12, 12], [47], [78], [79], [85]], ids=str)
def test_kill_9_at_any_moment(tmp_path: Path, whole: dict[str, bytes], deaths: list[int]) -> None:
    out = tmp_path / "x"
    tests = str(Path(__file__).parent.parent)
    for calls in deaths:
        command = [sys.executable, "-P", "-c", KILLED, str(out), str(calls), tests]
        assert subprocess.run(command, timeout=60).returncode == -9
        assert not out.exists()
    began = write_bundle(out)
    assert (began > 0) == (len(deaths) > 1 or 20 < calls < 85)
    assert contents(out) == whole
