"""The identity of the installed package: what it makes may be kept as long as it stays the same."""

from __future__ import annotations

import hashlib
from pathlib import Path


def package_hash(*parts: str) -> str:
    """64 hex digits over every file of the installed package: an upgrade or an edit changes it.

    `parts` are the subpackages to look at, where not at all.
    """
    import ondevice

    digest = hashlib.sha256()
    for folder in sorted({Path(entry) for entry in ondevice.__path__}):
        for path in sorted(p for top in parts or (".",) for p in (folder / top).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
