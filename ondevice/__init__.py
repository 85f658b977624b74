"""ondevice: a toolchain that turns a language model into an artifact for phones and laptops.

    import ondevice

    with ondevice.load("stories260k.bundle") as engine:
        ...

Importing this package imports nothing heavy; `ondevice.build` is the compiler, one page long.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from ondevice.errors import OndeviceError

if TYPE_CHECKING:
    from ondevice.runtime.async_engine import AsyncEngine
    from ondevice.runtime.engine import Engine

__version__ = "0.1.0"
__all__ = ["OndeviceError", "__version__", "load", "load_async"]


def load(path: str | PathLike[str], **options: Any) -> Engine:
    """Open the bundle directory `path` and start an engine over it.

    `options` are those of `ondevice.runtime.engine.Engine`. Raises BundleError where the bundle is
    missing, incomplete or damaged, RuntimeFailure where the C runtime refuses it.
    """
    from ondevice.runtime.engine import Engine

    return Engine(path, **options)


def load_async(path: str | PathLike[str], **options: Any) -> AsyncEngine:
    """The same engine for asyncio: `async with ondevice.load_async(path) as engine: ...`."""
    from ondevice.runtime.async_engine import AsyncEngine

    return AsyncEngine(path, **options)
