"""The descriptor: one table behind C's structs, LLVM's constants and the weights header."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ondevice.bundle import descriptor
from ondevice.codegen.descriptor import emit_descriptor
from ondevice.codegen.link import archive, link_library, runtime_objects
from ondevice.errors import RuntimeFailure, ToolchainError
from ondevice.runtime import header, profile
from ondevice.runtime.header import API_VERSION, ENDINGS, TOP_LOGPROBS, Status
from ondevice.runtime.native import Library, NativeEngine, model_descriptor
from ondevice.targets import load

from .conftest import SYMBOLS, OpenToy, Toy, compile_c, link_toy, toy_program


def test_header_is_current() -> None:
    """`python -m ondevice.bundle.descriptor` prints native/model.h anew."""
    assert descriptor.HEADER_PATH.read_text() == descriptor.print_header()


def test_python_binding_matches_the_header() -> None:
    text = (descriptor.HEADER_PATH.parent / "ondevice.h").read_text()
    enum = dict(re.findall(r"\bOD_(\w+) = (-?\d+)", text))
    assert {name: int(value) for name, value in enum.items()} == {s.name: s.value for s in Status}
    assert f"#define OD_API_VERSION {API_VERSION}\n" in text
    assert f"#define OD_TOP_LOGPROBS {TOP_LOGPROBS}\n" in text
    assert min(ENDINGS) == Status.TIMEOUT


def test_layout_is_that_of_c(tmp_path: Path) -> None:
    lines = ["#include <stdio.h>", "#include <stddef.h>", '#include "model.h"', "int main(void) {"]
    for item in descriptor.STRUCTS:
        lines.append(f'printf("%zu\\n", sizeof({item.name}));')
    source = tmp_path / "sizes.c"
    source.write_text("\n".join([*lines, "return 0;", "}"]))
    program = compile_c("gcc", tmp_path / "sizes", [source], "-fhosted")
    sizes = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert [int(s) for s in sizes] == [descriptor.size_bytes(s.name) for s in descriptor.STRUCTS]


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        ("od_options", header.COptions),
        ("od_engine_info", header.CInfo),
        ("od_sampling", header.CSampling),
        ("od_logit_bias", header.CLogitBias),
        ("od_stop_string", header.CStopString),
        ("od_token_logprobs", header.CTokenLogprobs),
        ("od_stats", header.CStats),
        ("od_profile_row", profile.Row),
        ("od_profile_event", profile.Event),
    ],
)
def test_structs_of_the_binding_are_those_of_c(
    name: str, mirror: type[ctypes.Structure], tmp_path: Path
) -> None:
    lines = ["#include <stdio.h>", "#include <stddef.h>", '#include "ondevice.h"']
    lines += ["int main(void) {", f'printf("%zu\\n", sizeof({name}));']
    fields = [field[0] for field in mirror._fields_]
    lines += [f'printf("%zu\\n", offsetof({name}, {field}));' for field in fields]
    source = tmp_path / "offsets.c"
    source.write_text("\n".join([*lines, "return 0;", "}"]))
    program = compile_c("gcc", tmp_path / "offsets", [source], "-fhosted")
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    expected = [ctypes.sizeof(mirror), *(getattr(mirror, field).offset for field in fields)]
    assert [int(n) for n in out] == expected


def test_weights_header_bytes() -> None:
    header = descriptor.pack_weights_header("ab" * 32, 1000, "cd" * 8)
    assert len(header) == descriptor.size_bytes("od_weights_header") == 64
    expected = (b"ODWEIGHT", 2, 64, b"\xab" * 32, 1000, b"\xcd" * 8)
    assert struct.unpack("<8sII32sQ8s", header) == expected


def test_feature_mask() -> None:
    assert descriptor.feature_mask(("avx2", "fma")) == 3
    with pytest.raises(KeyError, match="sse9"):
        descriptor.feature_mask(("sse9",))


def test_emitted_model_runs_like_the_one_in_c(
    libondevice: Library, toy: Toy, open_toy: OpenToy, tmp_path: Path
) -> None:
    program = toy_program()
    library = tmp_path / "libmodel.so"
    library.write_bytes(link_toy(program, tmp_path))
    weights = tmp_path / "weights.bin"
    header = descriptor.pack_weights_header(program.abi_hash, toy.embedding.nbytes)
    weights.write_bytes(header + toy.embedding.tobytes())

    address = model_descriptor(library, descriptor.model_symbol(program.abi_hash))
    engine = NativeEngine(libondevice, address, weights, threads=2)
    assert (engine.info.variant, engine.info.kv_blocks) == ("plain", 28)
    tokens = list(range(60))
    logits = engine.conversation().logits(tokens, 97)
    np.testing.assert_array_equal(logits, open_toy().conversation().logits(tokens, 97))
    engine.close()
    with pytest.raises(RuntimeFailure, match="belongs to another build of toy"):
        NativeEngine(libondevice, address, toy.weights)


def test_library_is_lean(tmp_path: Path) -> None:
    """No libraries needed, no text relocations, 16 KiB pages, only od_ names; equal bytes."""
    target = load("host")
    objects = runtime_objects(target)
    library = link_library(objects, target, target.runtime_library)
    assert link_library(runtime_objects(target), target, target.runtime_library) == library
    assert len(library) < 200_000
    path = tmp_path / target.runtime_library
    path.write_bytes(library)
    dynamic = readelf("-dW", path)
    assert "NEEDED" not in dynamic and "TEXTREL" not in dynamic and "BIND_NOW" in dynamic
    loads = [line.split()[-1] for line in readelf("-lW", path).splitlines() if " LOAD " in line]
    assert loads and set(loads) == {"0x4000"}
    symbols = [line.split() for line in readelf("--dyn-syms", "-W", path).splitlines()[4:]]
    defined = {s[7] for s in symbols if s[6] != "UND"}
    undefined = {s[7] for s in symbols if s[6] == "UND" and len(s) > 7}
    assert {name[:3] for name in defined} == {"od_"}
    assert undefined <= {"memcpy", "memset", "memcmp", "pthread_create", "pthread_join"}
    assert b"/tmp" not in library and b"/home" not in library
    assert archive(objects) == archive(objects)


def readelf(*arguments: str | Path) -> str:
    return subprocess.run(
        ["readelf", *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_bytes": 0}, "weights offset 0"),
        ({"slots": ()}, "no arena slot 0"),
        ({"vocab_size": 2**31}, "od_model.vocab_size = 2147483648 does not fit 32 bits"),
    ],
)
def test_impossible_programs_are_refused(change: dict[str, object], message: str) -> None:
    program = dataclasses.replace(toy_program(), **change)  # type: ignore[arg-type]
    with pytest.raises(ToolchainError, match=message):
        emit_descriptor(program, [("plain", frozenset(), SYMBOLS)])


def test_variant_without_a_kernel() -> None:
    with pytest.raises(ToolchainError, match="variant plain has no kernel toy_embed"):
        emit_descriptor(toy_program(), [("plain", frozenset(), {})])
