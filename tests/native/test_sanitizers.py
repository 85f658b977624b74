"""The C driver, run plainly and under the address, undefined and thread sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ondevice.codegen.link import NATIVE, WARNINGS, runtime_sources

from .conftest import HERE, Toy, compile_c

CLANG = "clang" if shutil.which("clang") else "clang-14"
BUILDS = {
    "plain": ("gcc", "-O2"),
    "address": (CLANG, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"),
    "thread": (CLANG, "-O1", "-g", "-fsanitize=thread"),
}
PROMPT = [str(i * 7 % 97) for i in range(60)]


@pytest.mark.parametrize("build", BUILDS)
def test_driver(build: str, toy: Toy, toy_tokenizer_data: bytes, tmp_path: Path) -> None:
    compiler, *options = BUILDS[build]
    tokenizer = tmp_path / "tokenizer.bin"
    tokenizer.write_bytes(toy_tokenizer_data)
    model = compile_c(compiler, tmp_path / "libtoy.so", [HERE / "toy_model.c"], "-shared", *options)
    driver = compile_c(
        compiler,
        tmp_path / "driver",
        [HERE / "driver.c", *runtime_sources()],
        *(*options, *WARNINGS, "-std=gnu11", "-fhosted", "-ldl", "-pthread", f"-I{NATIVE}"),
    )
    outputs = set()
    for threads in ("1", "4"):
        files = [str(model), "od_model_toy", str(toy.weights), str(tokenizer)]
        command = [str(driver), *files, threads, *PROMPT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    (output,) = outputs  # the same for any number of threads
    lines = output.splitlines()
    assert lines[0:3] == lines[3:6]  # together as alone
    assert len(lines[0].split()) == 25


REPOSITORY = HERE.parents[1]
SUITE = ("tests/runtime", "tests/e2e/test_bits.py", "tests/e2e/test_story.py")


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_suite(sanitizer: str, tmp_path: Path) -> None:
    """The tests of real bundles, with the runtime instrumented (generated kernels are not)."""
    library = compile_c(
        "gcc",
        tmp_path / "libondevice.so",
        runtime_sources(),
        *("-shared", "-fPIC", "-std=gnu11", "-fhosted", "-O1", "-g", "-pthread"),
        *("-ffp-contract=off", "-fvisibility=hidden", f"-I{NATIVE}"),
        *(f"-fsanitize={sanitizer}", "-fno-sanitize-recover=undefined"),
    )
    names = {"address,undefined": ("asan", "ubsan"), "thread": ("tsan",)}[sanitizer]
    found = (
        subprocess.run(
            ["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(found),
        "ONDEVICE_RUNTIME_LIBRARY": str(library),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own would drown ours; the driver checks those
        "TSAN_OPTIONS": "exitcode=66",
    }
    # -P: the installed package, not the source in the working directory.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITE]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "Sanitizer" not in done.stdout + done.stderr
