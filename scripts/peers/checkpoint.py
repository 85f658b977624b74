"""What is in a checkpoint directory, for the files that peers want."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of queries or keys as Meta's own files have them: neighbours are a rotary pair."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
