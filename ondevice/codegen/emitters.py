"""LLVM in several processes: its Python bindings hold one lock, so threads would take turns."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import llvmlite

from ondevice.codegen.cache import cached
from ondevice.codegen.emit import LLVM_OPTION, emit_object
from ondevice.codegen.llvm import print_function, print_module
from ondevice.errors import OndeviceError, ToolchainError
from ondevice.lang.kernel_ir import Kernel
from ondevice.package import package_hash

START = "import sys; sys.path[:] = sys.argv[1:]; from ondevice.codegen import emitters as e; "
MOST = 8  # processes; each has LLVM in its memory


@dataclass(frozen=True)
class KernelJob:
    """A kernel to become an object that defines `symbol`; `printed` is what `print_kernel` says."""

    kernel: Kernel
    printed: str
    symbol: str
    features: frozenset[str]
    triple: str
    cpu: str

    def key(self) -> list[str]:
        """All that determines the object."""
        tools = llvmlite.__version__, LLVM_OPTION, printers_hash()
        options = ",".join(sorted(self.features)), self.triple, self.cpu
        return ["kernel", *tools, self.symbol, *options, self.printed]

    def function(self) -> str:
        """LLVM text of the function, in a section of its own."""
        return print_function(self.kernel, self.symbol, self.features, f".text.{self.symbol}")

    def text(self) -> str:
        """A module of the function."""
        return print_module([self.function()], self.triple)


@cache
def printers_hash() -> str:
    """Of the source that makes LLVM text of kernels."""
    return package_hash("codegen", "lang")


class Emitters:
    """Processes that print and compile kernels, one for each core; they start when needed."""

    def __init__(self, most: int = MOST) -> None:
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, most))
        self._own = threading.local()
        self.children: list[subprocess.Popen[bytes]] = []

    def emit(self, job: KernelJob) -> Future[bytes]:
        """The object of a job, kept; the future raises ToolchainError with LLVM's message."""
        return self._pool.submit(cached, job.key(), lambda: self._emit(job))

    def close(self) -> None:
        """Give up what has not begun, and end the processes."""
        self._pool.shutdown(cancel_futures=True)
        for child in self.children:
            child.communicate()  # the end of its input ends it

    def _emit(self, job: KernelJob) -> bytes:
        child = self._child()
        assert child.stdin is not None and child.stdout is not None
        try:
            pickle.dump(job, child.stdin)
            child.stdin.flush()
            found = pickle.load(child.stdout)
        except (OSError, EOFError):
            raise ToolchainError("LLVM ended while it compiled a kernel; see above") from None
        if isinstance(found, OndeviceError):
            raise found
        assert isinstance(found, bytes)
        return found

    def _child(self) -> subprocess.Popen[bytes]:
        """The process of this thread."""
        child: subprocess.Popen[bytes] | None = getattr(self._own, "child", None)
        if child is None or child.poll() is not None:
            words = [sys.executable, "-c", START + "e.serve()", *sys.path]
            child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._own.child = child
            self.children.append(child)
        return child


def serve() -> None:
    """Such a process: jobs from standard input, objects or messages to standard output."""
    gc.disable()  # what a kernel is printed from are trees
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the build, which closes our input
    jobs, out = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            job: KernelJob = pickle.load(jobs)
        except EOFError:
            return
        try:
            found: bytes | OndeviceError = emit_object(job.text(), job.triple, job.cpu)
        except OndeviceError as error:
            found = error
        pickle.dump(found, out)
        out.flush()
