"""What a pass may look at besides the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ondevice.lang.library import Library
from ondevice.targets.target import Target


@dataclass(frozen=True)
class Context:
    """The machine that is compiled for, and the kernels there are."""

    target: Target
    library: Library
    kept: dict[str, Any] = field(default_factory=dict, compare=False)  # what takes long to find
