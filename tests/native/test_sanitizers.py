"""The C driver, run plainly and under the address, undefined and thread sanitizers."""

from __future__ import annotations

import shutil
import subprocess
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
def test_driver(build: str, toy: Toy, tmp_path: Path) -> None:
    compiler, *options = BUILDS[build]
    model = compile_c(compiler, tmp_path / "libtoy.so", [HERE / "toy_model.c"], "-shared", *options)
    driver = compile_c(
        compiler,
        tmp_path / "driver",
        [HERE / "driver.c", *runtime_sources()],
        *(*options, *WARNINGS, "-std=gnu11", "-fhosted", "-ldl", "-pthread", f"-I{NATIVE}"),
    )
    outputs = set()
    for threads in ("1", "4"):
        command = [str(driver), str(model), "od_model_toy", str(toy.weights), threads, *PROMPT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    (output,) = outputs  # the same for any number of threads
    lines = output.splitlines()
    assert lines[0:3] == lines[3:6]  # together as alone
    assert len(lines[0].split()) == 25
