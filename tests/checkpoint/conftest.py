"""Writing safetensors files by hand, so that tests can also write wrong ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Write = Callable[..., Path]


def encode(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def encode_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A right file: arrays of float32, float16, or uint16 standing for bf16 bits."""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    header, data = {}, b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    return encode(header, data)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(content, name=...) -> path; content is bytes, arrays by name, or (header, data)."""

    def write(content: Any, name: str = "model.safetensors") -> Path:
        if isinstance(content, dict):
            content = encode_tensors(content)
        elif isinstance(content, tuple):
            content = encode(*content)
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write
