"""`ondevice doctor`: what this machine is, what is installed, and what would run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from ondevice import __version__, debug
from ondevice.errors import OndeviceError

LEAST_FREE_BYTES = 1 << 30
REINSTALL = "pip install --force-reinstall ondevice"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where all is well."""

    subject: str
    found: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine and this installation; exit code 1 where something needs a remedy."""
    findings = [finding for look in LOOKS for finding in look()]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'FIX' if finding.remedy else 'ok':4} {finding.subject:16} {finding.found}")
            if finding.remedy:
                print(f"{'':21} -> {finding.remedy}")
    if any(finding.remedy for finding in findings):
        raise typer.Exit(1)


def _machine() -> Iterator[Finding]:
    yield Finding("ondevice", f"{__version__} on Python {platform.python_version()}")
    model = _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown CPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", f"{platform.system()} {platform.machine()}, {model}, {cores} cores")
    kilobytes = _first("/proc/meminfo", "MemAvailable").removesuffix("kB").strip()
    if kilobytes.isdecimal():
        yield Finding("memory", f"{int(kilobytes) * 1024:,} bytes available")


def _variants() -> Iterator[Finding]:
    """Which code of a bundle for this machine would run."""
    from ondevice import targets
    from ondevice.bundle.descriptor import CPU_FEATURES
    from ondevice.targets.detect import host_features

    try:
        target, features = targets.load("host"), host_features()
    except OndeviceError as error:
        remedy = "build for another machine with --target; `ondevice targets` lists them"
        yield Finding("runs", str(error), remedy)
        return
    known = [name for name in CPU_FEATURES if name in features]
    yield Finding("CPU features", " ".join(known) or "none that matter")
    usable = [v.name for v in target.cpu.variants if features.issuperset(v.features)]
    if usable:
        others = f" (also {', '.join(usable[1:])})" if usable[1:] else ""
        yield Finding("runs", f"bundles for {target.name}, variant {usable[0]}{others}")
    else:
        least = target.cpu.variants[-1]
        missing = " ".join(name for name in least.features if name not in features)
        remedy = "build here for another machine with --target, and run it there"
        yield Finding("runs", f"nothing: this CPU lacks {missing}", remedy)


def _toolchain() -> Iterator[Finding]:
    yield _try("llvmlite", _llvm)
    yield _try("ziglang", _zig)
    for package in ("tokenizers", "huggingface_hub", "numpy"):
        yield _try(package, lambda name=package: version(name))  # type: ignore[misc]


def _try(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, look())
    except PackageNotFoundError:
        return Finding(subject, "missing", REINSTALL)
    except Exception as error:  # whatever a broken installation raises is the finding
        lines = str(error).strip().splitlines()
        return Finding(subject, lines[0] if lines else type(error).__name__, REINSTALL)


def _llvm() -> str:
    """Compiles a function, which says more than a version."""
    from ondevice.codegen.emit import emit_object, host_triple, llvm_version

    emit_object("define i32 @one() { ret i32 1 }", host_triple())
    return f"{version('llvmlite')}, LLVM {llvm_version()}, compiles"


def _zig() -> str:
    command = [sys.executable, "-m", "ziglang", "version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise OndeviceError(done.stderr.strip() or "does not start")
    return f"{version('ziglang')}, runs"


def _caches() -> Iterator[Finding]:
    cache = debug.cache_dir()
    sizes = [file.stat().st_size for file in cache.rglob("*") if file.is_file()]
    writable = _writable(_nearest_directory(cache))
    remedy = "" if writable else "let ONDEVICE_CACHE_DIR name a directory that can be written"
    text = f"{cache}: {sum(sizes):,} bytes in {len(sizes)} files"
    yield Finding("cache", text + ("" if writable else ", not writable"), remedy)
    from huggingface_hub import constants

    for subject, place, setting in (
        ("hub cache", Path(constants.HF_HUB_CACHE), "let HF_HOME name a larger disk"),
        ("working place", Path.cwd(), "choose another place with --out"),
    ):
        free = shutil.disk_usage(_nearest_directory(place)).free
        remedy = "" if free >= LEAST_FREE_BYTES else f"free some space, or {setting}"
        yield Finding(subject, f"{place}: {free:,} bytes free", remedy)


LOOKS = (_machine, _variants, _toolchain, _caches)


def _writable(directory: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _nearest_directory(path: Path) -> Path:
    """`path` or the nearest place above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def _first(file: str, key: str) -> str:
    """The value of the first line `key: value` of a file of the system, or ""."""
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
