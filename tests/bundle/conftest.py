"""A small bundle of made-up files: what the format tests need is no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.format import Libraries, ModelInfo, ProgramInfo, SamplingInfo, TokenizerInfo
from ondevice.bundle.program import WeightEntry
from ondevice.bundle.write import BundleWriter

ABI = "ab" * 32
MODEL_LIBRARY = f"lib/libmodel_{ABI[:16]}.so"


def finish(writer: BundleWriter, weights: bytes) -> Path:
    return writer.finish(
        name="tiny",
        target="linux-x86_64",
        variants=("avx2",),
        abi_hash=ABI,
        model=ModelInfo("LlamaForCausalLM", 512, 128, 64, 64, 5, "f32"),
        program=ProgramInfo(("embed", "matmul"), 40, 4096, 65536),
        tokenizer=TokenizerInfo("tokenizer/tokenizer.bin", "tokenizer/template.bin", 1, (2,)),
        sampling=SamplingInfo(0.7, top_k=20, top_p=0.9),
        libraries=Libraries("lib/libondevice.so", MODEL_LIBRARY),
        tensors=(WeightEntry("embed", "f32", (len(weights) // 4,), "rows", 0, len(weights)),),
    )


def write_files(writer: BundleWriter, weights: bytes) -> None:
    writer.add("lib/libondevice.so", b"runtime")
    writer.add(MODEL_LIBRARY, b"\0" + model_symbol(ABI).encode() + b"\0")
    writer.add("include/ondevice.h", b"/* the C API */\n")
    writer.add("tokenizer/tokenizer.bin", b"tables")
    writer.add("tokenizer/template.bin", b"segments")
    with writer.weights(ABI, len(weights)) as file:
        file.write(weights)


def write_tiny_bundle(out: Path, weights: bytes = bytes(range(256))) -> Path:
    with BundleWriter(out) as writer:
        write_files(writer, weights)
        return finish(writer, weights)


@pytest.fixture
def write_bundle() -> Callable[..., Path]:
    return write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.bundle")
