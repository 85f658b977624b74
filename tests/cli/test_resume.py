"""Builds that end too early: killed, interrupted, out of space. OUT is never there half."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Ondevice = Callable[..., subprocess.CompletedProcess[str]]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "random_checkpoint.py"
SHAPE = "--hidden 256 --layers 2 --heads 4 --kv-heads 2 --inner 512 --vocab 8000 --context 64"
FLOATS = ("--set", "quant.default=f32")  # 21 MB: six chunks

# A build that signals itself when it has streamed its Nth tensor (-1: while it compiles). Signal 0
# stands for a disk that fills up: `hog` beside the bundle takes all the room that is left.
STRUCK = """
import os, shutil, sys
from ondevice.bundle.write import WeightsFile
from ondevice.cli.main import main
import ondevice.build

number, at = int(sys.argv[1]), int(sys.argv[2])
real, count = WeightsFile.note, 0

def strike(*arguments, **options):
    if number:
        return os.kill(os.getpid(), number)
    home = os.path.dirname(sys.argv[sys.argv.index("--out") + 1])
    with open(os.path.join(home, "hog"), "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(home).free)

def note(file, text):
    global count
    count += 1
    if count == at:
        strike()
    real(file, text)

WeightsFile.note = note
if at < 0:
    ondevice.build.compile_kernels = strike
sys.argv = ["ondevice", *sys.argv[3:]]
main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "random"
    command = [sys.executable, str(SCRIPT), "tinyllama-1.1b", str(out), *SHAPE.split()]
    subprocess.run(command, check=True, capture_output=True)
    return out


def build(home: Path, checkpoint: Path) -> list[str]:
    report = str(home / "report.json")
    return ["build", str(checkpoint), *FLOATS, "--out", str(home / "x"), "--report", report]


def struck(number: int, at: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-P", "-c", STRUCK, str(number), str(at), *command]
    return subprocess.run(code, capture_output=True, text=True, timeout=120)


def contents(path: Path) -> dict[str, bytes]:
    """All files, the report without its seconds."""
    files = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    report = json.loads(files["report.json"])
    assert list(report.pop("seconds")) == ["plan", "code", "weights", "rest"]
    return files | {"report.json": json.dumps(report).encode()}


@pytest.fixture(scope="module")
def whole(
    ondevice: Ondevice, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    home = tmp_path_factory.mktemp("whole")
    done = ondevice(*build(home, checkpoint))
    assert done.returncode == 0, done.stderr
    return contents(home)


@pytest.mark.parametrize("at", [[-1], [2, 9]], ids=str)
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(
    ondevice: Ondevice, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path, at: list[int]
) -> None:
    for count in at:
        assert struck(signal.SIGKILL, count, build(tmp_path, checkpoint)).returncode == -9
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.partial" / "weights.log").exists() == (at != [-1])
    done = ondevice(*build(tmp_path, checkpoint))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == whole  # the report of every tensor too
    assert ondevice("verify", tmp_path / "x").returncode == 0


def test_another_checkpoint_starts_afresh(checkpoint: Path, tmp_path: Path) -> None:
    def log(model: Path, tensors: int) -> list[str]:
        assert struck(signal.SIGKILL, tensors, build(tmp_path, model)).returncode == -9
        return (tmp_path / "x.partial" / "weights.log").read_text().splitlines()

    first = log(checkpoint, 9)
    assert len(first) > 9
    os.utime(checkpoint / "model-00001-of-00001.safetensors")  # might have been changed
    again = log(checkpoint, 1)
    assert again[0] != first[0]
    assert not any(line.startswith("note") for line in again)  # its first tensor came again


def test_ctrl_c_is_one_line_and_keeps_the_work(checkpoint: Path, tmp_path: Path) -> None:
    done = struck(signal.SIGINT, 9, build(tmp_path, checkpoint))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == (
        f"ondevice: interrupted; the same command goes on with {tmp_path / 'x.partial'}\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.partial"]


def test_ctrl_c_with_nothing_to_keep_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    done = struck(signal.SIGINT, -1, build(tmp_path, checkpoint))
    assert (done.returncode, done.stderr) == (130, "ondevice: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(n)`: a file system of its own with n bytes of room."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("this user may not mount a file system")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_disk_without_room_is_said_before_the_weights(
    ondevice: Ondevice, checkpoint: Path, small_disk: Callable[[int], Path]
) -> None:
    home = small_disk(8 << 20)
    done = ondevice(*build(home, checkpoint))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "weights.bin: the disk is full" in done.stderr and "are missing" in done.stderr
    assert "free some space or choose another --out" in done.stderr
    assert list(home.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_work(
    ondevice: Ondevice, checkpoint: Path, whole: dict[str, bytes], small_disk: Callable[[int], Path]
) -> None:
    home = small_disk(30 << 20)
    command = build(home, checkpoint)
    done = struck(0, 3, command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "the disk is full" in done.stderr
    assert sorted(path.name for path in home.iterdir()) == ["hog", "x.partial"]
    (home / "hog").unlink()
    assert ondevice(*command).returncode == 0
    assert contents(home) == whole


def test_files_may_not_grow(checkpoint: Path, tmp_path: Path) -> None:
    """As `ulimit -f` and file systems with small files have it."""
    command = [sys.executable, "-P", "-m", "ondevice", *build(tmp_path, checkpoint)]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 6000; exec "$@"', "-", *command], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "files of this size are not allowed here; choose another --out" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    drop_capability = 24  # PR_CAPBSET_DROP: root obeys permissions too, without CAP_DAC_OVERRIDE
    libc = ctypes.CDLL(None)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ondevice", *build(tmp_path, checkpoint)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: libc.prctl(drop_capability, 1, 0, 0, 0),
    )
    tmp_path.chmod(0o755)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "this place cannot be written; choose another --out" in done.stderr


def test_two_builds_into_one_place(
    ondevice: Ondevice, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    command = build(tmp_path, checkpoint)
    code = [sys.executable, "-P", "-c", STRUCK, str(int(signal.SIGSTOP)), "3", *command]
    with subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED)  # it stops itself while it writes
        second = ondevice(*command)
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=120) == 0
    assert (second.returncode, second.stdout, second.stderr.count("\n")) == (1, "", 1)
    assert "another build is writing" in second.stderr
    assert json.loads(contents(tmp_path)["report.json"]) == json.loads(whole["report.json"])
    assert contents(tmp_path) == whole
