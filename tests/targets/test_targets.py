"""Targets are rows of one catalogue; names are only for people."""

from __future__ import annotations

import platform

import pytest

from ondevice import targets
from ondevice.bundle.descriptor import CPU_FEATURES
from ondevice.errors import TargetError
from ondevice.targets.detect import host_features, parse_cpuinfo


def test_host_is_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert targets.load("host") is targets.load("linux-x86_64")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert targets.load("host") is targets.load("linux-arm64")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match="Linux-riscv64"):
        targets.load("host")


def test_variants_are_best_first_and_known_to_the_runtime() -> None:
    for name in targets.names()[1:]:
        cpu = targets.load(name).cpu
        widths = [variant.vector_bits for variant in cpu.variants]
        assert widths == sorted(widths, reverse=True)
        for variant in cpu.variants:
            assert set(variant.features) <= set(CPU_FEATURES)


def test_code_asks_for_features() -> None:
    cpu = targets.load("linux-x86_64").cpu
    assert cpu.has("fma")
    assert not cpu.has("avx512vnni")
    assert cpu.variants[0].has("avx512vnni")


def test_library_names_carry_the_abi() -> None:
    target = targets.load("linux-x86_64")
    assert target.model_library_name("0123456789abcdef" * 4) == "libmodel_0123456789abcdef.so"


@pytest.mark.parametrize(
    ("name", "message"),
    [("linux-x86-64", "did you mean 'linux-x86_64'"), ("ios-arm64", "planned but not built")],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        targets.load(name)


def test_detection_speaks_llvms_language() -> None:
    text = "flags\t\t: fma avx2 avx512_vnni avx_vnni\n\nflags : avx2 fma avx512_vnni\n"
    assert parse_cpuinfo(text) == {"fma", "avx2", "avx512vnni"}
    assert parse_cpuinfo("Features\t: asimd asimddp i8mm\n") == {"neon", "dotprod", "i8mm"}
    assert parse_cpuinfo("") == frozenset()
    assert host_features()
