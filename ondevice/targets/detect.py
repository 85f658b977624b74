"""Which CPU features this machine has. The C runtime dispatches; this only reports."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ondevice.errors import TargetError

# Linux's names where they differ from LLVM's; the rest are the same in both.
_LINUX_NAMES = {
    "avx_vnni": "avxvnni",
    "avx512_vnni": "avx512vnni",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
}


@cache
def host_features() -> frozenset[str]:
    """LLVM's names of the features of this machine's CPU.

    Raises TargetError where the system offers no way to ask.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _features_by_llvm()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> frozenset[str]:
    """Features that all processors of a /proc/cpuinfo share (kinds of cores may differ)."""
    processors = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            processors.append(frozenset(_LINUX_NAMES.get(flag, flag) for flag in value.split()))
    return frozenset.intersection(*processors) if processors else frozenset()


def _features_by_llvm() -> frozenset[str]:
    """For systems without /proc: LLVM's own detection, where llvmlite is installed."""
    try:
        from llvmlite import binding
    except ImportError as error:
        raise TargetError("cannot tell this CPU's features: no /proc/cpuinfo") from error
    features = binding.get_host_cpu_features()
    return frozenset(name for name, present in features.items() if present)
