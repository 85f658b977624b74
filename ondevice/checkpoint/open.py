"""Opening a checkpoint: a directory as Hugging Face saves it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.checkpoint.safetensors import (
    TensorInfo,
    close_files,
    open_file,
    open_sharded,
    parse_json,
)
from ondevice.closes import Closes
from ondevice.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint(Closes):
    """An open checkpoint; tensors are read through descriptors that `close` closes."""

    path: Path
    architecture: str  # such as "LlamaForCausalLM"
    config: Mapping[str, Any]  # config.json
    generation_config: Mapping[str, Any]  # generation_config.json, {} where there is none
    tensors: Mapping[str, TensorInfo]

    @property
    def tokenizer(self) -> Path:
        """Where tokenizer.json lies (or should)."""
        return self.path / "tokenizer.json"

    @property
    def tokenizer_config(self) -> Path | None:
        """tokenizer_config.json, None where there is none."""
        file = self.path / "tokenizer_config.json"
        return file if file.is_file() else None

    def source_hash(self) -> str:
        """Changes whenever a file of weights does, as far as its place, size and times tell."""
        files = {tensor.file: os.fstat(tensor.fd) for tensor in self.tensors.values()}
        rows = sorted(
            (str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            for file, stat in files.items()
        )
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def close(self) -> None:
        close_files(self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory with config.json and safetensors. Raises CheckpointError."""
    path = Path(path)
    config_file, generation = path / "config.json", path / "generation_config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no config.json")
    config = parse_json(config_file, config_file.read_bytes())
    return Checkpoint(
        path,
        architecture_of(config_file, config),
        config,
        parse_json(generation, generation.read_bytes()) if generation.is_file() else {},
        _open_tensors(path),
    )


def architecture_of(file: Path, config: Mapping[str, Any]) -> str:
    """The one name under "architectures" of config.json. Raises CheckpointError."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(f'{file}: "architectures" must name one architecture, not {names!r}')
    return names[0]


def _open_tensors(path: Path) -> dict[str, TensorInfo]:
    if (path / SINGLE).is_file():
        return open_file(path / SINGLE)
    if (path / INDEX).is_file():
        return open_sharded(path / INDEX)
    others = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
    found = f" (found {', '.join(others)})" if others else ""
    raise CheckpointError(
        f"{path} has neither {SINGLE} nor {INDEX}{found}; save the model as safetensors"
    )
