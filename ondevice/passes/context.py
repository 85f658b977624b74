"""What a pass may look at besides the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ondevice.lang.kernel_ir import Kernel
from ondevice.lang.library import Library
from ondevice.targets.target import Target

VariantKernels = tuple[Kernel, ...]  # a kernel for each CPU variant of the target, in its order
Begin = Callable[[str, VariantKernels, Sequence[str]], None]


def ignore_kernel(symbol: str, kernels: VariantKernels, texts: Sequence[str]) -> None:
    """A `begin` for those who do not compile."""


@dataclass(frozen=True)
class Context:
    """The machine that is compiled for, and the kernels there are.

    `begin` hears of each kernel as soon as it is known that a program needs it: its symbol, and it
    and its text for each CPU variant.
    """

    target: Target
    library: Library
    begin: Begin = ignore_kernel
    kept: dict[str, Any] = field(default_factory=dict, compare=False)  # what takes long to find
