"""Verifying a bundle: every byte against the manifest's hashes, and its parts against each other.

Opening a bundle is fast because it trusts the bytes; this is what a download is followed by.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ondevice.bundle.descriptor import WEIGHTS_DATA_START, model_symbol, pack_weights_header
from ondevice.bundle.format import MANIFEST, FileEntry
from ondevice.bundle.read import Bundle, open_bundle
from ondevice.errors import BundleError
from ondevice.progress import SILENT, Advance, Progress


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `problem` is empty where it is as it should be."""

    subject: str
    problem: str = ""


def verify_bundle(path: str | os.PathLike[str], progress: Progress = SILENT) -> tuple[Check, ...]:
    """All checks of the bundle at `path`, in a fixed order, failed ones among them.

    Files and chunks of weights are read side by side; `progress` hears of every byte. Raises
    BundleError where it cannot even be opened (see `open_bundle`).
    """
    bundle = open_bundle(path)
    with (
        progress.step("verify", bundle.size_bytes, "bytes") as advance,
        ThreadPoolExecutor() as pool,  # hashing releases the interpreter lock
    ):
        files = pool.map(lambda entry: _check_file(bundle, entry, advance), bundle.manifest.files)
        chunks = pool.map(lambda i: _check_chunk(bundle, i, advance), range(_chunks(bundle)))
        damaged = [problem for problem in chunks if problem]
        weights = Check(bundle.manifest.weights.path, "; ".join(damaged))
        identity = () if damaged else (_check_identity(bundle),)
        return (*files, weights, *identity, _check_library(bundle), *_check_strays(bundle))


def _check_file(bundle: Bundle, entry: FileEntry, advance: Advance) -> Check:
    with open(bundle.path / entry.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    advance(entry.size_bytes)
    return Check(entry.path, "" if digest == entry.sha256 else "its bytes have changed")


def _chunks(bundle: Bundle) -> int:
    return len(bundle.manifest.weights.chunk_sha256)


def _check_chunk(bundle: Bundle, number: int, advance: Advance) -> str:
    weights = bundle.manifest.weights
    start = number * weights.chunk_bytes
    with open(bundle.weights_path, "rb") as file:
        file.seek(start)
        data = file.read(weights.chunk_bytes)
    advance(len(data))
    digest = hashlib.sha256(data).hexdigest()
    if digest == weights.chunk_sha256[number]:
        return ""
    end = min(start + weights.chunk_bytes, weights.size_bytes)
    return f"bytes {start} to {end} have changed"


def _check_library(bundle: Bundle) -> Check:
    """libmodel must export the descriptor of the very program the weights are packed for."""
    symbol = model_symbol(bundle.manifest.abi_hash)
    found = symbol.encode() + b"\0" in bundle.libmodel.read_bytes()
    return Check(f"symbol {symbol}", "" if found else "the model library does not export it")


def _check_identity(bundle: Bundle) -> Check:
    """The header's identity is a hash of the chunks' hashes, the first with no identity in it."""
    weights = bundle.manifest.weights
    with open(bundle.weights_path, "rb") as file:
        first = file.read(weights.chunk_bytes)
    header = pack_weights_header(bundle.manifest.abi_hash, weights.size_bytes - WEIGHTS_DATA_START)
    unsigned = hashlib.sha256(header + first[len(header) :]).hexdigest()
    hashes = "".join((unsigned, *weights.chunk_sha256[1:])).encode()
    right = hashlib.sha256(hashes).hexdigest()[:16] == weights.identity
    return Check(f"weights {weights.identity}", "" if right else "other weights than these")


def _check_strays(bundle: Bundle) -> Iterator[Check]:
    known = {bundle.manifest.weights.path, *(entry.path for entry in bundle.manifest.files)}
    for path in sorted(_relative_files(bundle.path)):
        if path not in known and path != MANIFEST:
            yield Check(path, "is not named in the manifest")


def _relative_files(top: Path) -> Iterator[str]:
    return (p.relative_to(top).as_posix() for p in top.rglob("*") if not p.is_dir())


def require_whole(path: str | os.PathLike[str]) -> None:
    """Raise BundleError where `verify_bundle` finds a problem."""
    problems = [f"{c.subject}: {c.problem}" for c in verify_bundle(path) if c.problem]
    if problems:
        raise BundleError(f"{path} is damaged: {'; '.join(problems)}")
