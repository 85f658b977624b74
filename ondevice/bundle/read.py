"""Opening a bundle: everything cheap to check is checked before anyone uses it."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from ondevice.bundle.descriptor import WEIGHTS_DATA_START
from ondevice.bundle.format import (
    MANIFEST,
    MANIFEST_MAX_BYTES,
    PROGRAM_FILE,
    Manifest,
    parse_manifest,
    parse_weights_header,
)
from ondevice.bundle.program import Program
from ondevice.bundle.program_text import parse_program
from ondevice.errors import BundleError


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files exist with the sizes its manifest states."""

    path: Path
    manifest: Manifest

    @property
    def weights_path(self) -> Path:
        return self.path / self.manifest.weights.path

    @property
    def libondevice(self) -> Path:
        return self.path / self.manifest.libraries.runtime

    @property
    def libmodel(self) -> Path:
        return self.path / self.manifest.libraries.model

    @property
    def tokenizer_path(self) -> Path:
        return self.path / self.manifest.tokenizer.file

    @property
    def chat_template_path(self) -> Path | None:
        name = self.manifest.tokenizer.chat_template
        return None if name is None else self.path / name

    @property
    def prompt_path(self) -> Path | None:
        """The saved conversation that others start with, where the bundle ships one."""
        file = self.manifest.prompt.file
        return None if file is None else self.path / file

    def read_program(self) -> Program:
        """The launch table that libmodel was compiled from. Raises BundleError."""
        if PROGRAM_FILE not in (entry.path for entry in self.manifest.files):
            raise BundleError(f"{self.path} has no {PROGRAM_FILE}; build the bundle again")
        place = self.path / PROGRAM_FILE
        with _opened(place) as file:
            data = file.read()
        entries = {entry.path: entry for entry in self.manifest.files}
        if hashlib.sha256(data).hexdigest() != entries[PROGRAM_FILE].sha256:
            raise BundleError(f"{place} is damaged; build or fetch the bundle again")
        return parse_program(data.decode("utf-8"))

    @property
    def size_bytes(self) -> int:
        """Of all files the manifest names."""
        sizes = (entry.size_bytes for entry in self.manifest.files)
        return self.manifest.weights.size_bytes + sum(sizes)


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in the directory `path`.

    Reads the manifest and the weights' header and compares sizes; `verify_bundle` reads every
    byte. Raises BundleError where something is missing, cut off or of another format.
    """
    directory = Path(path)
    manifest = parse_manifest(_read_manifest(directory), str(directory / MANIFEST))
    bundle = Bundle(directory, manifest)
    for entry in manifest.files:
        _check_size(directory / entry.path, entry.size_bytes)
    _check_size(bundle.weights_path, manifest.weights.size_bytes)
    with _opened(bundle.weights_path) as file:
        header = file.read(WEIGHTS_DATA_START)
    abi_hash, data_bytes, identity = parse_weights_header(header, str(bundle.weights_path))
    if abi_hash != manifest.abi_hash:
        raise BundleError(
            f"{bundle.weights_path} is packed for program {abi_hash[:16]}, this bundle's is "
            f"{manifest.abi_hash[:16]}; build the bundle again"
        )
    if data_bytes != manifest.weights.size_bytes - WEIGHTS_DATA_START:
        raise BundleError(f"{bundle.weights_path} states another size than its manifest")
    if identity != manifest.weights.identity:
        raise BundleError(
            f"{bundle.weights_path} is damaged, or of another bundle; build or fetch it again"
        )
    return bundle


def _read_manifest(directory: Path) -> str:
    path = directory / MANIFEST
    if not os.path.isdir(directory):  # which no name fails, however long
        kind = "is a file, not a bundle directory" if directory.is_file() else "does not exist"
        raise BundleError(f"{directory} {kind}; `ondevice build` makes one")
    if not path.is_file():
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}")
    if path.stat().st_size > MANIFEST_MAX_BYTES:
        raise BundleError(f"{path} is too large to be a manifest")
    with _opened(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text; build or fetch it again") from error


def _check_size(path: Path, size_bytes: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path} is missing; build or fetch the bundle again") from error
    if not path.is_file() or actual != size_bytes:
        raise BundleError(
            f"{path} has {actual} bytes, not {size_bytes}; build or fetch the bundle again"
        )


def _opened(path: Path) -> io.FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
