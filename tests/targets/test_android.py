"""What Android asks of a library, without Android: ELF as it wants it, only calls it allows."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ondevice import targets
from ondevice.bundle.read import open_bundle
from ondevice.codegen.emit import emit_object
from ondevice.codegen.link import link_library, system_stubs
from ondevice.errors import ToolchainError
from ondevice.runtime.engine import Engine
from ondevice.runtime.sampling import Sampling

from .conftest import MOST, PROMPT, AppOutput, BuildFor, Expected, app_arguments
from .emulated import ANDROID_APP_CALLS, build_host, lines, run

ANDROID = ("android-arm64", "android-x86_64")
PAGE_BYTES = 16384


def readelf(option: str, path: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    return run(["readelf", option, "-W", path]).stdout


@pytest.mark.parametrize("scheme", ["f32", "int8_g256", "int4_g32"])
@pytest.mark.parametrize("target", ANDROID)
def test_libraries_are_as_android_wants_them(target: str, scheme: str, built_for: BuildFor) -> None:
    bundle = open_bundle(built_for(target, scheme))
    needed = {bundle.libondevice: {"libc.so"}, bundle.libmodel: set[str]()}
    for library, names in needed.items():
        dynamic = readelf("-d", library)
        assert set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) <= names
        assert f"[{library.name}]" in dynamic
        assert "TEXTREL" not in dynamic and "BIND_NOW" in dynamic
        check_segments(readelf("-l", library))
        assert "Shared object file" in readelf("-h", library)
    assert bundle.libondevice.stat().st_size <= 400_000
    assert bundle.libmodel.stat().st_size <= 400_000


def check_segments(text: str) -> None:
    """16 KiB pages, nothing both writable and executable, a stack that is not executable."""
    loads = re.findall(r"LOAD\s+(\w+) (\w+) \w+ \w+ \w+ (.{3}) (\w+)", text)
    assert loads
    for offset, address, flags, align in loads:
        assert int(align, 16) % PAGE_BYTES == 0
        assert (int(address, 16) - int(offset, 16)) % PAGE_BYTES == 0
        assert not ("W" in flags and "E" in flags)
    assert re.search(r"GNU_STACK.* RW ", text)
    assert "GNU_RELRO" in text


@pytest.mark.parametrize("target", ANDROID)
def test_runner_needs_nothing(target: str, built_for: BuildFor) -> None:
    runner = built_for(target, "f32") / "bin" / targets.load(target).runner
    text = readelf("-l", runner)
    check_segments(text)
    assert "INTERP" not in text and "DYNAMIC" not in text
    assert runner.stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("target", ANDROID)
def test_symbols_are_few(target: str, built_for: BuildFor) -> None:
    bundle = open_bundle(built_for(target, "f32"))
    exported = re.findall(r"GLOBAL DEFAULT +\d+ (\w+)", readelf("--dyn-syms", bundle.libmodel))
    assert exported == [f"od_model_{bundle.manifest.abi_hash[:16]}"]
    runtime = re.findall(r"GLOBAL DEFAULT +\d+ (\w+)", readelf("--dyn-syms", bundle.libondevice))
    assert all(name.startswith("od_") for name in runtime)


def test_what_android_does_not_offer_is_refused_when_linking() -> None:
    target = targets.load("android-arm64")
    calls = "declare void @fopen()\ndefine void @f() {\n  call void @fopen()\n  ret void\n}\n"
    code = emit_object(f'target triple = "{target.triple}"\n{calls}', target.triple)
    with pytest.raises(ToolchainError, match="undefined symbol: fopen"):
        link_library([code], target, "libf.so", system_stubs(target))


def filtered(
    built_for: BuildFor, directory: Path, calls: dict[str, int]
) -> subprocess.CompletedProcess[str]:
    """The android-x86_64 libraries in an app that may make only these system calls."""
    host = build_host(targets.load("android-x86_64"), directory)
    arguments = app_arguments(built_for("android-x86_64", "int4_g32"), directory)
    numbers = ",".join(map(str, calls.values()))
    return subprocess.run([*host, *arguments, numbers], capture_output=True, text=True, timeout=60)


def test_library_runs_under_androids_filter(
    built_for: BuildFor, app_output: AppOutput, tmp_path: Path
) -> None:
    done = filtered(built_for, tmp_path, ANDROID_APP_CALLS)
    assert done.returncode == 0, done.stdout + done.stderr
    variant = done.stdout.splitlines()[1].split()[1]  # of this machine
    assert lines(done.stdout) == app_output("int4_g32", variant)


@pytest.mark.parametrize("call", ["futex", "sched_getaffinity", "mprotect"])
def test_filter_is_at_work(call: str, built_for: BuildFor, tmp_path: Path) -> None:
    calls = {name: number for name, number in ANDROID_APP_CALLS.items() if name != call}
    assert filtered(built_for, tmp_path, calls).returncode == -signal.SIGSYS


# ---- ondevice-run, on the machine at hand ----


def test_runner_by_variant_and_threads(built_for: BuildFor, expected: Expected) -> None:
    bundle = built_for("host", "int4_g32")
    command = [bundle / "bin/ondevice-run", bundle, "--tokens", PROMPT, "--max-tokens", str(MOST)]
    tokens = expected("int4_g32")[0]
    for threads in ("1", "3"):
        done = run([*command, "--threads", threads])
        assert [int(t) for t in done.stdout.split()] == tokens
        assert f"{threads} threads" in done.stderr
    stopped = run([*command, "--stop-tokens", f"5,{tokens[4]}"])
    assert [int(t) for t in stopped.stdout.split()] == tokens[: tokens.index(tokens[4])]
    assert stopped.stderr.startswith("stopped: ")
    drawn = [run([*command, "--temperature", "1.5", "--seed", seed]).stdout for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage: ondevice-run"),
        (["--tokens", "1,x"], 2, "cannot read --tokens"),
        (["--tokens"], 2, "cannot read --tokens"),
        (["--tokens", "1", "--colour", "3"], 2, "cannot read --colour"),
        (["--tokens", "100000"], 1, "token"),
        (["--tokens", "1", "--prompt", "a"], 2, "usage: ondevice-run"),
        (["--tokens", "1", "--temperature", "nan"], 2, "cannot read --temperature"),
        (["--tokens", "1", "--top-p", "1.5"], 1, "top_p is not a number within 0..1"),
        (["--prompt", "a", "--stop", ""], 1, "stop string 0 has 0 bytes"),
        (["--prompt", "a", "--stop", "x" * 1025], 2, "cannot read --stop"),
        (["--prompt", "\udcff"], 1, "the text is no UTF-8"),
        (["--tokens", "1", "--variant", "sse9"], 1, "sse9"),
        (["--tokens", "1", "--logits", "/"], 1, "cannot write /"),
    ],
)
def test_runner_says_what_is_wrong(
    arguments: list[str], status: int, message: str, built_for: BuildFor
) -> None:
    bundle = built_for("host", "int4_g32")
    done = run([bundle / "bin/ondevice-run", bundle, *arguments], status)
    assert message in done.stderr and not done.stdout.strip()


def test_runner_continues_text(built_for: BuildFor) -> None:
    bundle = built_for("host", "int4_g32")
    prompt, most = "Once upon a time, there was a dög", 40
    run_text = [bundle / "bin/ondevice-run", bundle, "--prompt", prompt, "--max-tokens", str(most)]
    with Engine(bundle) as engine:
        text = "".join(engine.generate(prompt, most))
        sampling = Sampling(0.75, top_k=40, top_p=0.875, repetition_penalty=1.25, seed=3)
        drawn = "".join(engine.generate(prompt, most, sampling))
    assert run(run_text).stdout == text + "\n"
    options = "--temperature 0.75 --top-k 40 --top-p 0.875 --repetition-penalty 1.25 --seed 3"
    assert run([*run_text, *options.split()]).stdout == drawn + "\n"
    stop = text[20:23]
    stopped = run([*run_text, "--stop", "never", "--stop", stop])
    assert stopped.stdout == text[: text.index(stop)] + "\n"
    assert stopped.stderr.startswith("stopped: ")


def test_runner_of_another_model(built_for: BuildFor, tmp_path: Path) -> None:
    runner = built_for("host", "int4_g32") / "bin/ondevice-run"
    other = run([runner, built_for("host", "f32"), "--tokens", "1"], 1)
    assert "weights" in other.stderr
    missing = run([runner, tmp_path, "--tokens", "1"], 1)
    assert "cannot open the bundle's weights.bin" in missing.stderr
