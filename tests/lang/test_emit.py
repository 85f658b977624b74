"""Code generation for other machines, and the guards around LLVM."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.codegen.emit import check_intrinsics, emit_assembly, emit_object, host_triple
from ondevice.codegen.llvm import print_function, print_module
from ondevice.errors import ToolchainError
from ondevice.lang import (
    bitcast,
    cast,
    dot4,
    dot4_u7,
    f16,
    f32,
    fma,
    i8,
    i32,
    kernel,
    load,
    parallel,
    store,
    u8,
    vec,
)
from ondevice.lang.specialize import specialize

ARM = "aarch64-linux-android24"
NEON = frozenset({"neon"})
AVX512 = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"})


@kernel
def dots(u: u8[R, 64], s: i8[R, 64], scales: f16[R, 16], y: f32[R, N]):
    for r in parallel(R):
        general = dot4(vec(0, 16), load(u, r, 0, lanes=64), load(s, r, 0, lanes=64))
        small = dot4_u7(general, load(u, r, 0, lanes=64) & 127, load(s, r, 0, lanes=64))
        word = bitcast(u8, vec(load(u, r, 4, lanes=1, as_=i32), 16))
        small = dot4_u7(small, word & 127, load(s, r, 0, lanes=64))
        scale = cast(f32, load(scales, r, 0, count=N))
        store(y, r, 0, fma(cast(f32, small), scale, 1.0), count=N)


@pytest.mark.parametrize("extra", [(), ("dotprod",), ("dotprod", "i8mm")], ids=str)
@pytest.mark.parametrize("triple", [ARM, "arm64-apple-macos13.0"])
def test_arm_objects(triple, extra):
    features = NEON | set(extra)
    text = print_module([print_function(specialize(dots, {}, {}), "dots", features)], triple)
    data = emit_object(text, triple)
    assert data[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")
    assembly = emit_assembly(text, triple)
    best = "usdot" if "i8mm" in extra else "sdot" if "dotprod" in extra else "saddlp"
    assert best in assembly


@pytest.mark.parametrize("triple", ["wasm32-unknown-unknown", "x86_64-pc-windows-msvc"])
def test_any_target_has_a_plain_form(triple):
    text = print_function(specialize(dots, {}, {}), "dots", frozenset())
    assert emit_object(print_module([text], triple), triple)


def test_avx512_uses_whole_registers():
    triple = "x86_64-unknown-linux-gnu"
    text = print_function(specialize(dots, {}, {}), "dots", AVX512)
    lines = emit_assembly(print_module([text], triple), triple).splitlines()
    for instruction in ("vpdpbusd", "vfmadd"):
        found = [line for line in lines if instruction in line]
        assert found and all("zmm" in line for line in found)


def test_dots_equal_numpy(same_bits, features):
    if "f16c" not in features:
        pytest.skip("halves need f16c")
    rng = np.random.default_rng(1)
    u = rng.integers(0, 256, (5, 64), np.uint8)
    s = rng.integers(-128, 128, (5, 64), np.int8)
    u[0], s[0] = 255, -128
    u[1], s[1] = 255, 127
    scales = rng.standard_normal((5, 16)).astype(np.float16)
    for width in (3, 16):
        same_bits(dots, [u, s, scales, np.zeros((5, width), np.float32)])


@pytest.mark.parametrize(
    "call, features, message",
    [
        ("@llvm.x86.avx512.vpdpbusd.512()", "+avx2", "without the feature avx512vnni"),
        ("@llvm.x86.sse2.pause()", "+avx2", "not in codegen.emit.ALLOWED"),
    ],
)
def test_intrinsics_are_checked_before_llvm_sees_them(call, features, message):
    text = f'define void @f() "target-features"="{features}" {{\n  call void {call}\n}}\n'
    with pytest.raises(ToolchainError, match=message):
        check_intrinsics(text)


def test_broken_text_is_an_error_not_a_crash():
    with pytest.raises(ToolchainError, match="LLVM refused the code"):
        emit_object("define void @f() { ret i32 }", host_triple())


def test_objects_are_reproducible():
    def made():
        text = print_function(specialize(dots, {}, {}), "dots", NEON | {"dotprod"})
        return emit_object(print_module([text], ARM), ARM)

    assert made() == made()
