"""`ondevice inspect`: what a bundle holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ondevice.bundle.read import Bundle


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show the model, target, files and weights of BUNDLE."""
    from ondevice.bundle.format import print_manifest
    from ondevice.bundle.read import open_bundle

    opened = open_bundle(bundle)
    if as_json:
        print(print_manifest(opened.manifest), end="")
    else:
        print("\n".join(_lines(opened)))


def _lines(bundle: Bundle) -> Iterator[str]:
    manifest, model = bundle.manifest, bundle.manifest.model
    yield f"{manifest.name} for {manifest.target} ({', '.join(manifest.variants)})"
    yield f"  {model.architecture}: {model.layers} layers of {model.hidden_size}"
    yield f"  vocabulary {model.vocab_size}, context {model.context_tokens} tokens"
    yield f"  keys and values in {model.kv_dtype}, steps of {model.prefill_chunk_tokens} tokens"
    yield f"  program {manifest.abi_hash[:16]}, format {manifest.format_version}"
    yield ""
    yield f"  {'weights':30} {'tensors':>8} {'bytes':>14}"
    schemes: dict[str, list[int]] = defaultdict(list)
    for tensor in manifest.weights.tensors:
        schemes[f"{tensor.scheme} {tensor.layout}".strip()].append(tensor.size_bytes)
    for scheme, sizes in sorted(schemes.items()):
        yield f"  {scheme:30} {len(sizes):8} {sum(sizes):14,}"
    yield ""
    yield f"  {'files':39} {'bytes':>14}"
    for entry in manifest.files:
        yield f"  {entry.path:39} {entry.size_bytes:14,}"
    yield f"  {manifest.weights.path:39} {manifest.weights.size_bytes:14,}"
    yield f"  {'total':39} {bundle.size_bytes:14,}"
