"""The C tokenizer as it ships, and the tokenizers that lie beside the repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from ondevice.codegen.link import compile_runtime
from ondevice.runtime.tokenizer import Tokenizer
from ondevice.targets import load
from ondevice.tokenizer import compile_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
BUNDLED = ROOT / "recipes" / "stories260K"


def checkpoints() -> dict[str, Path]:
    """Directories with a tokenizer.json by name; the bundled one is always there."""
    shared = sorted((SHARED / "tokenizers").glob("*/tokenizer.json"))
    return {"stories260K": BUNDLED} | {path.parent.name: path.parent for path in shared}


@dataclass(frozen=True)
class Pair:
    """The original and ours."""

    library: Library
    native: Tokenizer
    notes: tuple[str, ...]
    data: bytes
    template: bytes | None


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "libondevice.so"
    path.write_bytes(compile_runtime(load("host")))
    return path


@pytest.fixture(scope="session")
def open_pair(runtime: Path) -> Callable[[Path], Pair]:
    """`open_pair(directory)`; compiled once."""
    known: dict[Path, Pair] = {}

    def open_directory(directory: Path) -> Pair:
        if directory not in known:
            config = directory / "tokenizer_config.json"
            compiled = compile_tokenizer(
                directory / "tokenizer.json", config if config.is_file() else None
            )
            native = Tokenizer(runtime, compiled.data, compiled.template)
            library = Library.from_file(str(directory / "tokenizer.json"))
            pair = Pair(library, native, compiled.notes, compiled.data, compiled.template)
            known[directory] = pair
        return known[directory]

    return open_directory


@pytest.fixture(params=list(checkpoints()))
def pair(request: pytest.FixtureRequest, open_pair: Callable[[Path], Pair]) -> Pair:
    return open_pair(checkpoints()[request.param])
