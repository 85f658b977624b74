"""Machines that this one is not: qemu-user's CPUs, a musl libc, and the rules of Android."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ondevice import targets
from ondevice.codegen.emit import emit_object
from ondevice.codegen.link import (
    RUNNER,
    compile_objects,
    link_executable,
    link_library,
    runtime_objects,
)
from ondevice.codegen.llvm import print_function, print_module
from ondevice.lang.evaluate import task_count
from ondevice.lang.kernel_ir import Kernel
from ondevice.targets import Target

HERE = Path(__file__).parent

# Models of qemu whose best variant is the key's.
CPUS = {"neon": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max"}

# System calls that Android lets apps make, as far as the runtime or a libc under it may make them,
# with their numbers on x86-64: all are in bionic's SYSCALLS.TXT, SECCOMP_ALLOWLIST_COMMON.TXT or
# SECCOMP_ALLOWLIST_APP.TXT, and none is in SECCOMP_BLOCKLIST_APP.TXT.
ANDROID_APP_CALLS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "ioctl": 16, "pread64": 17, "readv": 19, "writev": 20, "mincore": 27, "madvise": 28,
    "getpid": 39, "getrusage": 98,
    "clone": 56, "exit": 60, "fcntl": 72, "gettid": 186, "futex": 202, "sched_setaffinity": 203,
    "sched_getaffinity": 204, "set_tid_address": 218, "clock_gettime": 228, "exit_group": 231,
    "openat": 257, "newfstatat": 262, "membarrier": 324,
}  # fmt: skip

LIBC = (
    *("__libc_start_main", "dlopen", "dlsym", "dlerror", "printf", "open", "lseek", "prctl"),
    *("read", "exit"),
    *("memcpy", "memset"),
)
LOADERS = {"aarch64": "/lib/ld-musl-aarch64.so.1", "x86_64": "/lib/ld-musl-x86_64.so.1"}


def qemu(cpu: str) -> list[str]:
    """The command that runs an arm64 program; skips where it is missing."""
    path = shutil.which("qemu-aarch64")
    if path is None:
        pytest.skip("qemu-aarch64 is not installed")
    return [path, "-cpu", cpu]


def run(command: Sequence[str | Path], status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run to the end; the output as text."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr + done.stdout
    return done


def lines(text: str) -> str:
    """`text` without the spaces that end its lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def executable(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def build_host(target: Target, directory: Path, cpu: str = "max") -> list[str]:
    """The command of host.c over musl as the C library; skips where there is no musl.

    On arm64 the machine is qemu's `cpu`.
    """
    machine = target.triple.split("-")[0]
    if not Path(LOADERS[machine]).exists():
        pytest.skip(f"musl for {machine} is not installed")
    (host,) = compile_objects([HERE / "host.c"], target)
    names = "".join(f"define void @{name}() {{ ret void }}\n" for name in LIBC)
    (directory / "host.o").write_bytes(host)
    stub = emit_object(print_module([], target.triple, names), target.triple)
    (directory / "libc.so").write_bytes(link_library([stub], target, "libc.so"))
    output = directory / "host"
    inputs = [directory / "host.o", directory / "libc.so", "-o", output]
    loader = ["-dynamic-linker", LOADERS[machine]]
    run([sys.executable, "-m", "ziglang", *target.linker, *loader, *inputs])
    output.chmod(0o755)
    return [*(qemu(cpu) if machine == "aarch64" else []), str(output)]


class EmulatedKernels:
    """Kernels for one arm64 variant in one program, each run on arrays under qemu."""

    def __init__(self, kernels: Mapping[str, Kernel], variant: str, directory: Path) -> None:
        self.kernels, self.directory, self.variant = dict(kernels), directory, variant
        target = targets.load("linux-arm64")
        features = next(v.features for v in target.cpu.variants if v.name == variant)
        functions = [
            print_function(kernel, f"kernel_{i}", frozenset(features))
            for i, kernel in enumerate(self.kernels.values())
        ]
        names = ", ".join(f"ptr @kernel_{i}" for i in range(len(functions)))
        table = f"@od_test_kernels = constant [{len(functions)} x ptr] [{names}]\n"
        text = print_module(functions, target.triple, table)
        sources = [HERE / "kernels.c", RUNNER / "start_linux.c"]
        objects = [*runtime_objects(target), *compile_objects(sources, target)]
        objects.append(emit_object(text, target.triple, target.cpu.baseline))
        self.program = executable(directory / "kernels", link_executable(objects, target))

    def run(self, name: str, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """What the kernel makes of copies of `arrays`; its scalars are dims of theirs."""
        kernel = self.kernels[name]
        sizes = {
            dim: size
            for buffer, array in zip(kernel.buffers, arrays, strict=True)
            for dim, size in zip(buffer.dims, array.shape, strict=True)
            if isinstance(dim, str)
        }
        files = [self.directory / f"buffer{i}" for i in range(len(arrays))]
        for file, array in zip(files, arrays, strict=True):
            file.write_bytes(array.tobytes())
        scalars = self.directory / "scalars"
        scalars.write_bytes(np.array([sizes[s] for s in kernel.scalars] + [0], np.int32).tobytes())
        index = list(self.kernels).index(name)
        numbers = [index, 0, task_count(kernel, sizes), kernel.scratch_bytes]
        run([*qemu(CPUS[self.variant]), self.program, *map(str, numbers), scalars, *files])
        return [
            np.frombuffer(file.read_bytes(), array.dtype).reshape(array.shape)
            for file, array in zip(files, arrays, strict=True)
        ]
