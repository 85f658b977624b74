"""Whole models on emulated phones: NEON, dotprod, i8mm and this machine give the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice import targets

from .conftest import MOST, PROMPT, AppOutput, BuildFor, Expected, app_arguments
from .emulated import ANDROID_APP_CALLS, CPUS, build_host, lines, qemu, run

SCHEMES = ("f32", "int8_g256", "int4_g32", "int4_g32_sym")


@pytest.mark.parametrize("variant", CPUS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_runner_has_the_bits_of_the_host(
    scheme: str, variant: str, built_for: BuildFor, expected: Expected, tmp_path: Path
) -> None:
    emulator = qemu(CPUS[variant])
    bundle = built_for("android-arm64", scheme)
    command = [*emulator, bundle / "bin/ondevice-run", bundle, "--tokens", PROMPT]
    options = ["--max-tokens", MOST, "--threads", 2, "--logits", tmp_path / "logits"]
    done = run([*command, *map(str, options)])
    tokens, logits = expected(scheme)
    assert [int(t) for t in done.stdout.split()] == tokens
    assert f"; {variant}, 2 threads" in done.stderr
    assert (tmp_path / "logits").read_bytes() == logits.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        "--temperature 1.5 --seed 1",
        "--temperature 2 --top-k 50 --top-p 0.9 --min-p 0.01 --typical-p 0.9 --seed 2",
        "--temperature 1 --repetition-penalty 1.3 --presence-penalty 0.5 --frequency-penalty -0.1",
    ],
)
def test_a_seed_draws_the_same_text(options: str, built_for: BuildFor) -> None:
    said = []
    for emulator, target in ((qemu("max"), "android-arm64"), ([], "host")):
        bundle = built_for(target, "int4_g32")
        command = [*emulator, bundle / "bin/ondevice-run", bundle, "--prompt", "Lily saw a dog"]
        said.append(run([*command, "--max-tokens", "60", *options.split()]).stdout)
    assert said[0] == said[1] and len(said[0]) > 60


@pytest.mark.parametrize("variant", CPUS)
@pytest.mark.parametrize("scheme", ["f32", "int4_g32"])
def test_libraries_work_in_an_app(
    scheme: str, variant: str, built_for: BuildFor, app_output: AppOutput, tmp_path: Path
) -> None:
    """musl's libc.so stands in for Android's: both libraries are found by dlopen and generate."""
    host = build_host(targets.load("android-arm64"), tmp_path, CPUS[variant])
    bundle = built_for("android-arm64", scheme)
    done = run([*host, *app_arguments(bundle, tmp_path)])
    assert lines(done.stdout) == app_output(scheme, variant)


def test_system_calls_are_those_that_android_allows_apps(
    built_for: BuildFor, tmp_path: Path
) -> None:
    host = build_host(targets.load("android-arm64"), tmp_path)
    host.insert(1, "-strace")
    done = run([*host, *app_arguments(built_for("android-arm64", "f32"), tmp_path)])
    traced = [line.split(None, 1) for line in done.stderr.splitlines()]
    calls = {line[1].split("(")[0] for line in traced if line[0].isdigit() and "(" in line[1]}
    assert {"futex", "mmap", "clone"} <= calls <= set(ANDROID_APP_CALLS)


def test_linux_runs_the_same(built_for: BuildFor, expected: Expected) -> None:
    bundle = built_for("linux-arm64", "int4_g32")
    command = [*qemu("max"), bundle / "bin/ondevice-run", bundle, "--tokens", PROMPT]
    done = run([*command, "--max-tokens", str(MOST)])
    assert [int(t) for t in done.stdout.split()] == expected("int4_g32")[0]
