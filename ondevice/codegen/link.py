"""From C sources and objects to the two libraries of a bundle, with the tools of ziglang alone.

The runtime is freestanding C: no headers and no libraries of the target are needed, so no C
library is built on first use. Its few libc symbols are resolved in the process that loads it.
(For Android it is compiled as for linux-gnu: zig's android targets call `__aarch64_*` helpers for
atomics, which no library there provides.)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ondevice
from ondevice.codegen.cache import cached
from ondevice.errors import ToolchainError
from ondevice.targets import Target

NATIVE = Path(ondevice.__file__).parent / "native"

WARNINGS = (
    *("-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-Wundef", "-Wvla"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wpointer-arith"),
)
# What every build of the runtime needs to mean the same, sanitizer builds included.
MEANING = ("-std=c11", "-ffreestanding", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC")
COMPILE = (
    *("-O2", "-g0", "-fno-sanitize=all", "-fno-stack-protector", "-fno-ident", "-nostdlib"),
    *("-fno-asynchronous-unwind-tables", "-ffunction-sections", "-fdata-sections"),
    "-ffile-prefix-map=.=",
)
# 16 KiB pages are what Android asks for; everything is bound and made read-only at load.
LINK = (
    *("-shared", "--gc-sections", "--strip-all", "--hash-style=both", "--build-id=sha1"),
    *("-z", "max-page-size=16384", "-z", "common-page-size=16384"),
    *("-z", "now", "-z", "relro", "-z", "noexecstack", "-z", "text"),
)


def runtime_sources(system: str = "linux") -> list[Path]:
    """The C files of the runtime; of the platforms' files only the one of `system`."""
    platform = f"platform_{system}.c"
    files = sorted(NATIVE.glob("*.c"))
    return [f for f in files if not f.name.startswith("platform_") or f.name == platform]


def compile_runtime(target: Target) -> bytes:
    """libondevice for `target`, stripped. Raises ToolchainError with the compiler's words."""
    return link_library(runtime_objects(target), target, target.runtime_library)


def runtime_objects(target: Target) -> list[bytes]:
    """One object per C file of the runtime, from the cache where nothing has changed."""
    headers = [f.read_bytes() for f in sorted(NATIVE.glob("*.h"))]
    command = ["cc", "-target", target.zig_target, *MEANING, *COMPILE, *WARNINGS]
    objects = []
    for source in runtime_sources():
        key: list[str | bytes] = [
            *command,
            _tool_version(),
            source.name,
            source.read_bytes(),
            *headers,
        ]
        objects.append(cached(key, partial(_compile, command, source)))
    return objects


def link_library(
    objects: Sequence[bytes],
    target: Target,
    soname: str,
    stubs: Mapping[str, bytes] | None = None,
) -> bytes:
    """A shared library of `objects`; equal inputs give equal bytes.

    `stubs` are libraries by soname that it shall name as NEEDED (Android's libc.so and libm.so);
    with them undefined symbols are errors. Raises ToolchainError with the linker's words.
    """
    inputs = {f"{i:02}.o": data for i, data in enumerate(objects)} | dict(stubs or {})
    strict = ("--no-undefined",) if stubs else ()
    command = [*target.linker, *LINK, *strict, "-soname", soname, *inputs, "-o"]
    key = [*command, _tool_version(), *inputs.values()]
    return cached(key, lambda: _run(command, "library.so", inputs))


def archive(objects: Sequence[bytes], format: str = "gnu") -> bytes:
    """A static library of `objects` (format "darwin" for iOS), without dates or owners."""
    inputs = {f"{i:02}.o": data for i, data in enumerate(objects)}
    command = ["ar", f"--format={format}", "rcsD"]
    return _run(command, "library.a", inputs, output_first=True)


def _compile(command: Sequence[str], source: Path) -> bytes:
    inputs = {f.name: f.read_bytes() for f in (source, *NATIVE.glob("*.h"))}
    return _run([*command, "-c", source.name, "-o"], "object.o", inputs)


def _run(
    command: Sequence[str], output: str, inputs: Mapping[str, bytes], output_first: bool = False
) -> bytes:
    """Run a tool of ziglang in a directory that holds `inputs`; returns what it wrote."""
    with tempfile.TemporaryDirectory() as directory:
        for name, data in inputs.items():
            Path(directory, name).write_bytes(data)
        files = [output, *inputs] if output_first else [output]
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", *command, *files],
            cwd=directory,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            tool = " ".join(command[:3])
            raise ToolchainError(f"ziglang's {tool} failed:\n{done.stderr.strip()}")
        return Path(directory, output).read_bytes()


def _tool_version() -> str:
    try:
        return f"ziglang {version('ziglang')}"
    except PackageNotFoundError as error:
        raise ToolchainError("the ziglang package is missing: pip install ondevice") from error
