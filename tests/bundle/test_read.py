"""A damaged bundle is always a BundleError that says what is wrong, never another exception."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondevice.bundle.format import parse_manifest, parse_weights_header, print_manifest
from ondevice.bundle.read import open_bundle
from ondevice.bundle.verify import require_whole, verify_bundle
from ondevice.errors import BundleError


def test_an_opened_bundle_names_its_parts(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.model.architecture == "LlamaForCausalLM"
    assert opened.manifest.tokenizer.eos_token_ids == (2,)
    assert opened.weights_path == bundle / "weights.bin"
    assert opened.libondevice == bundle / "lib/libondevice.so"
    assert opened.libmodel.parent == bundle / "lib"
    assert opened.tokenizer_path.read_bytes() == b"tables"
    assert opened.chat_template_path == bundle / "tokenizer/template.bin"
    require_whole(bundle)


def test_manifest_text_round_trips(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert print_manifest(parse_manifest(text, "manifest.json")) == text


@pytest.mark.parametrize("path", ["missing", "bundle/manifest.json", "."])
def test_what_is_no_bundle(bundle: Path, path: str) -> None:
    bundle.rename(bundle.parent / "bundle")
    with pytest.raises(BundleError, match=r"does not exist|not a bundle"):
        open_bundle(bundle.parent / path)


@pytest.mark.parametrize("name", ["weights.bin", "lib/libondevice.so", "tokenizer/tokenizer.bin"])
def test_missing_and_truncated_files(bundle: Path, name: str) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name} has .* bytes, not"):
        open_bundle(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("at", "message"), [(0, "not a weights file"), (8, "version"), (16, "packed for"), (60, "dam")]
)
def test_damaged_weights_header(bundle: Path, at: int, message: str) -> None:
    path = bundle / "weights.bin"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_a_short_weights_header() -> None:
    with pytest.raises(BundleError, match="cut off"):
        parse_weights_header(b"ODWEIGHT", "weights.bin")


def test_verify_finds_one_changed_byte(bundle: Path) -> None:
    for name in ("weights.bin", "include/ondevice.h"):
        path = bundle / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    (bundle / "notes.txt").write_text("a stray file")
    problems = {check.subject: check.problem for check in verify_bundle(bundle) if check.problem}
    assert set(problems) == {"weights.bin", "include/ondevice.h", "notes.txt"}
    assert problems["weights.bin"] == "bytes 0 to 320 have changed"
    with pytest.raises(BundleError, match=r"notes\.txt: is not named"):
        require_whole(bundle)


def changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    table: Any = manifest
    *parents, last = path.split("/")
    for key in parents:
        table = table[int(key) if key.isdigit() else key]
    table[last] = value
    return manifest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "zip", "not the manifest"),
        ("format_version", 99, "version 99 is not"),
        ("colour", "red", "unknown key 'colour'"),
        ("model/vocab_size", "512", "model.vocab_size = '512' must be a whole number, not text"),
        ("model/vocab_size", True, "must be a whole number"),
        ("abi_hash", "xyz", "not a SHA-256"),
        ("files/0/path", "../../etc/passwd", "not one inside the bundle"),
        ("files/0/path", "/etc/passwd", "not one inside the bundle"),
        ("files/0/path", "lib/./x", "not one inside the bundle"),
        ("files/0/path", "weights.bin", "occurs twice"),
        ("tokenizer/file", "tokenizer.model", "needed but not among"),
        ("tokenizer/chat_template", "template.jinja", "needed but not among"),
        ("sampling/temperature", "hot", "sampling.temperature = 'hot' must be a number"),
        ("weights/chunk_sha256", [], "chunk hashes do not match"),
        ("weights/tensors/0/size_bytes", 999, "ends behind"),
        ("weights/tensors/0/offset", -1, "negative"),
    ],
)
def test_manifest_errors_say_what_is_wrong(
    bundle: Path, path: str, value: Any, message: str
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(BundleError, match=message):
        parse_manifest(json.dumps(changed(manifest, path, value)), "manifest.json")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mangled_manifests_are_bundle_errors(bundle: Path, data: st.DataObject) -> None:
    text = (bundle / "manifest.json").read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    middle = data.draw(st.text(max_size=8) | st.sampled_from(["[" * 100_000, '"', "NaN", "1e999"]))
    with contextlib.suppress(BundleError):
        parse_manifest(text[:start] + middle + text[end:], "manifest.json")
