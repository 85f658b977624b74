"""Builds of the runtime and of the toy model with the system's compiler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ondevice.bundle.descriptor import pack_weights_header
from ondevice.codegen.link import MEANING, NATIVE, WARNINGS, compile_runtime, runtime_sources
from ondevice.runtime.native import Library, NativeEngine, model_descriptor
from ondevice.targets import load

HERE = Path(__file__).parent
TOY_ABI = "700e".ljust(64, "0")


def compile_c(compiler: str, output: Path, sources: list[Path], *options: str) -> Path:
    """Compile with the runtime's own options; skips where the compiler is missing."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, *MEANING, *options, f"-I{NATIVE}", "-o", str(output), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@dataclass(frozen=True)
class Toy:
    """The toy model: its library, its weights file and the weights in it."""

    library: Path
    weights: Path
    embedding: NDArray[np.float32]  # [97, 8]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    directory = tmp_path_factory.mktemp("toy")
    library = compile_c(
        "gcc", directory / "libtoy.so", [HERE / "toy_model.c"], "-shared", "-O1", *WARNINGS
    )
    embedding = np.random.default_rng(0).normal(size=(97, 8)).astype(np.float32)
    weights = directory / "weights.bin"
    weights.write_bytes(pack_weights_header(TOY_ABI, embedding.nbytes) + embedding.tobytes())
    return Toy(library, weights, embedding)


@pytest.fixture(scope="session")
def libondevice(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The runtime as it ships."""
    path = tmp_path_factory.mktemp("runtime") / "libondevice.so"
    path.write_bytes(compile_runtime(load("host")))
    return Library(path)


@pytest.fixture(scope="session")
def internals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library of the runtime in which every function is visible."""
    path = tmp_path_factory.mktemp("internals") / "libinternals.so"
    options = ("-shared", "-O2", "-fvisibility=default", *WARNINGS)
    return compile_c("gcc", path, runtime_sources(), *options)


@pytest.fixture
def open_toy(toy: Toy, libondevice: Library, request: pytest.FixtureRequest) -> OpenToy:
    """Opens engines over the toy model and closes them after the test."""

    def open_engine(**options: object) -> NativeEngine:
        descriptor = model_descriptor(toy.library, "od_model_toy")
        options.setdefault("threads", 2)
        engine = NativeEngine(libondevice, descriptor, toy.weights, **options)  # type: ignore[arg-type]
        request.addfinalizer(engine.close)
        return engine

    return open_engine


OpenToy = Callable[..., NativeEngine]
