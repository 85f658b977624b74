"""Builds of the runtime and of the toy model with the system's compiler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from ondevice.bundle.descriptor import CPU_FEATURES, pack_weights_header
from ondevice.bundle.program import (
    Argument,
    KvCache,
    Launch,
    Program,
    ProgramKernel,
    Rope,
    Slot,
    Space,
    StepBuffer,
)
from ondevice.codegen.descriptor import emit_descriptor
from ondevice.codegen.emit import emit_object
from ondevice.codegen.link import (
    MEANING,
    NATIVE,
    WARNINGS,
    compile_runtime,
    link_library,
    runtime_sources,
)
from ondevice.dims import Extent
from ondevice.dtypes import f32
from ondevice.runtime.native import Library, NativeEngine, model_descriptor
from ondevice.runtime.tokenizer import Tokenizer
from ondevice.targets import load
from ondevice.tokenizer import compile_tokenizer

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
def runtime_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime as it ships."""
    path = tmp_path_factory.mktemp("runtime") / "libondevice.so"
    path.write_bytes(compile_runtime(load("host")))
    return path


@pytest.fixture(scope="session")
def libondevice(runtime_path: Path) -> Library:
    return Library(runtime_path)


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

# Single bytes of "é", "日" and "😀" are tokens of their own, as byte-level tokenizers have them.
TOY_BYTES = [*"abcdefghijklmnop", "Ġ", "Ċ", ".", "#", *"Ã©", *"æĹ¥", *"ðŁĺĢ"]


def toy_tokens() -> tuple[list[str], list[tuple[str, str]]]:
    """97 tokens, of which the first two are special, and how the longer ones are put together."""
    tokens, merges = ["<s>", "</s>", *TOY_BYTES], []
    starts = [*"abcĠ.#Ċ", "ab", "Ġa", "##", "Ã©", ".Ċ"]
    for left in starts:
        for right in (*"ab.#Ċ", "Ġ"):
            if len(tokens) < 97 and left + right not in tokens and left in tokens:
                tokens.append(left + right)
                merges.append((left, right))
    return tokens, merges


@pytest.fixture(scope="session")
def toy_tokenizer_data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A byte-level tokenizer for the toy model, compiled."""
    tokens, merges = toy_tokens()
    vocab = {token: number for number, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return compile_tokenizer(path, vocab_size=97).data


@pytest.fixture(scope="session")
def toy_tokenizer(runtime_path: Path, toy_tokenizer_data: bytes) -> Tokenizer:
    return Tokenizer(runtime_path, toy_tokenizer_data)


# ---- the same model as the compiler would make it ----

STEP = {b.name: Argument(Space.STEP, int(b)) for b in StepBuffer}
X, Y = Argument(Space.ARENA, 0), Argument(Space.ARENA, 1)
EMBEDDING, KV = Argument(Space.WEIGHTS), Argument(Space.KV)
PLACE = (STEP["POSITIONS"], STEP["SEQUENCE"], STEP["BLOCK_TABLE"])
S, L, P = Extent.of("S"), Extent.of("L"), Extent.of("P")


def launch(
    kernel: int, *arguments: Argument, tasks: Extent, scalars: tuple[Extent, ...] = ()
) -> Launch:
    rows = L if kernel == 3 else S
    return Launch(kernel, arguments, scalars, tasks, 4, rows, 1, 2**31, True, f"toy.{kernel}")


def toy_program() -> Program:
    """The program of toy_model.c, as the compiler would make it."""
    return Program(
        name="toy",
        vocab_size=97,
        context_tokens=200,
        prefill_chunk_tokens=48,
        logit_rows=6,
        kv=KvCache(1, 1, 4, f32),
        ropes=(Rope((1.0, 0.1, 0.01, 0.001)),),
        slots=(Slot("x", S * 32), Slot("y", S * 32)),
        kernels=tuple(
            ProgramKernel(f"toy_{n}", 32, "0" * 64)
            for n in ("embed", "write_kv", "attend", "project")
        ),
        launches=(
            launch(0, X, STEP["TOKENS"], EMBEDDING, tasks=S),
            launch(1, KV, X, *PLACE, tasks=S, scalars=(P,)),
            launch(2, Y, KV, *PLACE, STEP["ROPE"], tasks=S),
            launch(3, STEP["LOGITS"], Y, STEP["LOGIT_ROWS"], EMBEDDING, tasks=L * 97),
        ),
        weights=(),
        weights_bytes=97 * 8 * 4,
    )


SYMBOLS = {f"toy_{n}": f"toy_{n}" for n in ("embed", "write_kv", "attend", "project")}


def link_toy(program: Program, directory: Path) -> bytes:
    """libmodel of the toy: its C kernels behind a descriptor made by LLVM."""
    target = load("host")
    kernels = compile_c("gcc", directory / "toy.o", [HERE / "toy_model.c"], "-c", "-O1")
    variants = [
        ("best", frozenset(CPU_FEATURES), SYMBOLS),  # no CPU has the features of two ISAs
        ("plain", frozenset[str](), SYMBOLS),
    ]
    descriptor = emit_object(emit_descriptor(program, variants), target.triple)
    return link_library([kernels.read_bytes(), descriptor], target, "libmodel.so")
