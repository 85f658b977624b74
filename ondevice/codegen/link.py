"""From C sources and objects to the two libraries of a bundle, with the tools of ziglang alone.

The runtime is freestanding C: no headers and no libraries of the target are needed, so no C
library is built on first use. Its few libc symbols are resolved in the process that loads it.
(For Android it is compiled as for linux-gnu: zig's android targets call `__aarch64_*` helpers for
atomics, which no library there provides.) Where a library must name those it uses, it is linked
against stubs, so that nothing of the system is needed either.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ondevice
from ondevice.codegen.cache import cached
from ondevice.codegen.emit import emit_object
from ondevice.errors import ToolchainError
from ondevice.progress import Advance, ignore
from ondevice.targets import Target

NATIVE = Path(ondevice.__file__).parent / "native"
RUNNER = NATIVE / "runner"
HEADERS = sorted((*NATIVE.glob("*.h"), *RUNNER.glob("*.h")))

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
# 16 KiB pages are what Android asks for; everything is bound and made read-only at load. Kernels
# that came out the same for several CPU variants are kept once.
LINK = (
    *("--gc-sections", "--icf=all", "--strip-all", "--build-id=sha1"),
    *("-z", "max-page-size=16384", "-z", "common-page-size=16384"),
    *("-z", "now", "-z", "relro", "-z", "noexecstack", "-z", "text"),
)
LIBRARY = ("-shared", "--hash-style=both")

# What the runtime and the compiler's code for it call, by the library that has it.
SYSTEM_LIBRARIES = {
    "libc.so": (
        *("getauxval", "memcmp", "memcpy", "memmove", "memset"),
        *("pthread_create", "pthread_join"),
    ),
    "libm.so": (),
}


def runtime_sources(system: str = "linux") -> list[Path]:
    """The C files of the runtime; of the platforms' files only the one of `system`."""
    platform = f"platform_{system}.c"
    files = sorted(NATIVE.glob("*.c"))
    return [f for f in files if not f.name.startswith("platform_") or f.name == platform]


def compile_runtime(target: Target, advance: Advance = ignore) -> bytes:
    """libondevice for `target`, stripped; `advance` hears of each source file.

    Raises ToolchainError with the compiler's words.
    """
    stubs = system_stubs(target) if target.system_libraries else None
    return link_library(runtime_objects(target, advance), target, target.runtime_library, stubs)


def compile_runner(target: Target, model: Sequence[bytes], symbol: str) -> bytes:
    """`ondevice-run`: generates with a model, given the objects of its library.

    `symbol` is the model's descriptor in them.
    """
    sources = [RUNNER / name for name in ("main.c", "arguments.c", "start_linux.c")]
    objects = [*runtime_objects(target), *compile_objects(sources, target), *model]
    return link_executable(objects, target, {"od_linked_model": symbol})


def runtime_objects(target: Target, advance: Advance = ignore) -> list[bytes]:
    """One object per C file of the runtime, from the cache where nothing has changed."""
    return compile_objects(runtime_sources(), target, advance)


def compile_objects(
    sources: Sequence[Path], target: Target, advance: Advance = ignore
) -> list[bytes]:
    """Objects of C files beside the runtime's headers, by the rules that the runtime obeys."""
    headers = [f.read_bytes() for f in HEADERS]
    command = ["cc", "-target", target.zig_target, *MEANING, *COMPILE, *WARNINGS]

    def compiled(source: Path) -> bytes:
        key: list[str | bytes] = [*command, _tool_version(), source.name, source.read_bytes()]
        data = cached([*key, *headers], partial(_compile, command, source))
        advance(1)
        return data

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(compiled, sources))


def link_library(
    objects: Sequence[bytes],
    target: Target,
    soname: str,
    stubs: Mapping[str, bytes] | None = None,
) -> bytes:
    """A shared library of `objects`; equal inputs give equal bytes.

    `stubs` are libraries by soname that it names as NEEDED where it uses them; then, also when
    there are none, undefined symbols are errors. Raises ToolchainError with the linker's words.
    """
    inputs = {f"{i:02}.o": data for i, data in enumerate(objects)} | dict(stubs or {})
    strict = () if stubs is None else ("--no-undefined", "--as-needed")
    return _link((*LINK, *LIBRARY, *strict, "-soname", soname), target, inputs)


def link_executable(
    objects: Sequence[bytes], target: Target, aliases: Mapping[str, str] | None = None
) -> bytes:
    """A static executable of `objects`, without an interpreter: it needs no file of the system.

    `aliases` are further names of symbols. Raises ToolchainError with the linker's words.
    """
    inputs = {f"{i:02}.o": data for i, data in enumerate(objects)}
    names = [f"--defsym={alias}={symbol}" for alias, symbol in (aliases or {}).items()]
    return _link((*LINK, "-static", *names), target, inputs)


def system_stubs(target: Target) -> dict[str, bytes]:
    """Libraries that stand for the target's when linking: their names, no code."""
    stubs = {}
    for soname in target.system_libraries:
        functions = [f"define void @{f}() {{ ret void }}\n" for f in SYSTEM_LIBRARIES[soname]]
        text = f'target triple = "{target.triple}"\n' + "".join(functions)
        stubs[soname] = link_library([emit_object(text, target.triple)], target, soname)
    return stubs


def archive(objects: Sequence[bytes], format: str = "gnu") -> bytes:
    """A static library of `objects` (format "darwin" for iOS), without dates or owners."""
    inputs = {f"{i:02}.o": data for i, data in enumerate(objects)}
    command = ["ar", f"--format={format}", "rcsD"]
    return _run(command, "library.a", inputs, output_first=True)


def _link(options: Sequence[str], target: Target, inputs: Mapping[str, bytes]) -> bytes:
    """What the target's linker makes of files, from the cache where it has made it before."""
    command = [*target.linker, *options, *inputs, "-o"]
    key: list[str | bytes] = [*command, _tool_version(), *inputs.values()]
    return cached(key, lambda: _run(command, "linked", inputs))


def _compile(command: Sequence[str], source: Path) -> bytes:
    inputs = {f.name: f.read_bytes() for f in (source, *HEADERS)}
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
