"""The files that the C runtime reads, damaged, under the address and undefined sanitizers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ondevice.bundle.descriptor import pack_weights_header
from ondevice.codegen.link import MEANING, NATIVE, WARNINGS, runtime_sources

HERE = Path(__file__).parent
TOY = HERE.parent / "native" / "toy_model.c"
TOY_ABI = "700e".ljust(64, "0")
CLANG = "clang" if shutil.which("clang") else "clang-14"
MUTANTS = 600


def test_mutants(tmp_path: Path) -> None:
    if shutil.which(CLANG) is None:
        pytest.skip("clang is not installed")
    program, weights = tmp_path / "files", tmp_path / "weights.bin"
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    sources = [source for source in runtime_sources() if source.name != "kv_file.c"]
    command = [CLANG, *MEANING, *options, *WARNINGS, "-std=gnu11", "-fhosted", "-pthread"]
    command += ["-Wno-conversion", f"-I{NATIVE}", "-o", str(program)]
    command += map(str, (HERE / "files.c", TOY, *sources))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    embedding = np.random.default_rng(0).normal(size=(97, 8)).astype(np.float32)
    weights.write_bytes(pack_weights_header(TOY_ABI, embedding.nbytes) + embedding.tobytes())
    command = [str(program), str(weights), str(tmp_path / "scratch"), "1", str(MUTANTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    opened, restored, _ = map(int, re.findall(r"\d+", done.stdout))
    assert MUTANTS // 50 < opened < MUTANTS and MUTANTS // 50 < restored < MUTANTS, done.stdout
