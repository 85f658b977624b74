"""What is in a checkpoint directory, for the files that peers want."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def tensors(checkpoint: Path) -> Iterator[tuple[str, str, Any]]:
    """Name, dtype and mapped values of every tensor; bfloat16 as its bits."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        data = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        for name, entry in json.loads(data[8:start].tobytes()).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                values = data[start + begin : start + end].view(DTYPES[entry["dtype"]])
                yield name, entry["dtype"], values.reshape(entry["shape"])


def renamed(name: str, parts: Mapping[str, str], layer: str) -> str:
    """A weight's name in other files: model.layers.3.mlp.up_proj.weight is `layer` 3's part."""
    stem = name.removesuffix(".weight")
    if stem in parts:
        return f"{parts[stem]}.weight"
    number, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"{layer}.{number}.{parts[part]}.weight"


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of queries or keys as Meta's own files have them: neighbours are a rotary pair."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
