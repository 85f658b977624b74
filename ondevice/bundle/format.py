"""The bundle's manifest and the header of its weights file, read strictly and written one way.

NAME.bundle/
  manifest.json               what this is; every other file with its size and hash
  weights.bin                 64-byte header, then tensors at 64-aligned offsets
  lib/libondevice.so          the C runtime
  lib/libmodel_<abi>.so       the compiled program: one exported descriptor
  include/ondevice.h          the C API
  debug/program.txt           the launch table as text, for profiles; nothing else reads it
  tokenizer/tokenizer.bin     the tokenizer as tables
  tokenizer/template.bin      the chat template, where it could be followed
  prompt/system.kv            what the model computes of a system prompt, where one is shipped
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from ondevice.bundle.descriptor import (
    ALIGN_BYTES,
    WEIGHTS_DATA_START,
    WEIGHTS_MAGIC,
    WEIGHTS_VERSION,
)
from ondevice.bundle.program import WeightEntry
from ondevice.errors import BundleError
from ondevice.tables import Fail, read_table, write_table

MANIFEST = "manifest.json"
PROGRAM_FILE = "debug/program.txt"
BUNDLE_VERSION = 5
CHUNK_BYTES = 4 << 20  # the weights file is hashed, and may be fetched again, in such pieces
MANIFEST_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class ModelInfo:
    """What an application needs to know of the model."""

    architecture: str
    vocab_size: int
    context_tokens: int
    prefill_chunk_tokens: int
    hidden_size: int
    layers: int
    kv_dtype: str


@dataclass(frozen=True)
class ProgramInfo:
    """What the compiled program consists of, and the memory that it asks for beside the weights."""

    kernels: tuple[str, ...]
    launches: int
    step_bytes: int  # for the largest step
    kv_block_bytes: int  # of 32 tokens


@dataclass(frozen=True)
class TokenizerInfo:
    """Compiled tokenizer and chat template, as paths inside the bundle.

    `chat_template` None: raw prompts only, and one of the `notes` says why. `eos_token_ids` end a
    text or, with a chat template, an answer.
    """

    file: str
    chat_template: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplingInfo:
    """How the model's makers sample from it; None where they do not say.

    Used for chat where the caller names no temperature. `temperature` 0 takes the likeliest token.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class PromptInfo:
    """The system prompt that ships computed: its text, and the file with its first tokens.

    `file` None: there is none. The file is a saved conversation of `tokens` tokens.
    """

    system: str = ""
    file: str | None = None
    tokens: int = 0


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle other than the manifest and the weights."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Libraries:
    """Paths inside the bundle."""

    runtime: str
    model: str


@dataclass(frozen=True)
class WeightsInfo:
    """The weights file: its tensors, and a hash per `chunk_bytes` of the whole file.

    `identity` is that of the file's header: what was computed with other weights is refused by it.
    """

    path: str
    identity: str
    size_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[str, ...]
    tensors: tuple[WeightEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    format: str  # always "ondevice-bundle"
    format_version: int
    name: str
    target: str
    variants: tuple[str, ...]  # CPU variants in libmodel, best first
    abi_hash: str
    model: ModelInfo
    program: ProgramInfo
    tokenizer: TokenizerInfo
    sampling: SamplingInfo
    prompt: PromptInfo
    libraries: Libraries
    weights: WeightsInfo
    files: tuple[FileEntry, ...]


FORMAT = "ondevice-bundle"


def print_manifest(manifest: Manifest) -> str:
    """The one text of a manifest: sorted keys, two spaces, no dates, nothing of the machine."""
    return json.dumps(write_table(manifest), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """The inverse of `print_manifest`; `where` names the file in messages.

    Raises BundleError on anything it does not print: another version, an unknown key, a path that
    leaves the bundle, a hash that is none.
    """

    def fail(message: str) -> BundleError:
        return BundleError(f"{where}: {message}")

    table = _parse_json(text, fail)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise fail("this is not the manifest of an ondevice bundle")
    if table.get("format_version") != BUNDLE_VERSION:
        raise fail(
            f"bundle format version {table.get('format_version')!r} is not {BUNDLE_VERSION}, the "
            "one this ondevice reads; build the bundle again, or install the matching ondevice"
        )
    manifest = read_table(Manifest, table, fail)
    _check(manifest, fail)
    return manifest


def parse_weights_header(header: bytes, where: str) -> tuple[str, int, str]:
    """(abi_hash, data_bytes, identity) of a weights file's first 64 bytes. Raises BundleError."""
    if len(header) < WEIGHTS_DATA_START:
        raise BundleError(f"{where} is cut off inside its header; build or fetch it again")
    magic, version, data_start, abi, data_bytes, identity = struct.unpack(
        "<8sII32sQ8s", header[:64]
    )
    if magic != WEIGHTS_MAGIC:
        raise BundleError(f"{where} is not a weights file of ondevice")
    if version != WEIGHTS_VERSION or data_start != WEIGHTS_DATA_START:
        raise BundleError(
            f"{where} has weights format version {version}, this ondevice reads {WEIGHTS_VERSION}"
        )
    return abi.hex(), data_bytes, identity.hex()


def _parse_json(text: str, fail: Fail) -> Any:
    def refuse(constant: str) -> None:
        raise fail(f"{constant} is not a number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise fail("a key occurs twice")
        return table

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise fail(f"not JSON, or cut off ({error}); build or fetch the bundle again") from error


def _check(manifest: Manifest, fail: Fail) -> None:
    """Rules that types alone do not state."""
    weights, paths = manifest.weights, [entry.path for entry in manifest.files]
    for path in (weights.path, *paths):
        if not _inside(path):
            raise fail(f"path {path!r} is not one inside the bundle")
    if len({weights.path, MANIFEST, *paths}) != len(paths) + 2:
        raise fail("a path occurs twice")
    needed_paths = [manifest.tokenizer.file, manifest.libraries.runtime, manifest.libraries.model]
    if manifest.tokenizer.chat_template is not None:
        needed_paths.append(manifest.tokenizer.chat_template)
    if manifest.prompt.file is not None:
        needed_paths.append(manifest.prompt.file)
    for needed in needed_paths:
        if needed not in paths:
            raise fail(f"{needed!r} is needed but not among the files")
    for text in (manifest.abi_hash, *weights.chunk_sha256, *(f.sha256 for f in manifest.files)):
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise fail(f"{text!r} is not a SHA-256 hash")
    _check_weights(weights, fail)


def _check_weights(weights: WeightsInfo, fail: Fail) -> None:
    if not re.fullmatch("[0-9a-f]{16}", weights.identity):
        raise fail(f"weights.identity = {weights.identity!r} is not 16 hex digits")
    if weights.chunk_bytes < 1 or weights.size_bytes < WEIGHTS_DATA_START:
        raise fail("the weights' sizes make no sense")
    if len(weights.chunk_sha256) != -(-weights.size_bytes // weights.chunk_bytes):
        raise fail("the weights' chunk hashes do not match their size")
    data_bytes, end = weights.size_bytes - WEIGHTS_DATA_START, 0
    for tensor in weights.tensors:
        if tensor.offset < 0 or tensor.size_bytes < 0:
            raise fail(f"tensor {tensor.name!r} has a negative offset or size")
        if tensor.offset % ALIGN_BYTES or tensor.offset < end:
            raise fail(f"tensor {tensor.name!r} is not behind the one before, or not at 64 bytes")
        end = tensor.offset + tensor.size_bytes
        if tensor.offset + tensor.size_bytes > data_bytes:
            raise fail(f"tensor {tensor.name!r} ends behind the weights")


def _inside(path: str) -> bool:
    """Whether `path` is relative, in its shortest form, of characters every system takes."""
    parts = path.split("/")
    return all(re.fullmatch(r"[A-Za-z0-9._+-]+", p) and p not in (".", "..") for p in parts)
