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
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="List every kernel.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show the model, program, target, files and weights of BUNDLE."""
    from ondevice.bundle.format import print_manifest
    from ondevice.bundle.read import open_bundle

    opened = open_bundle(bundle)
    if as_json:
        print(print_manifest(opened.manifest), end="")
    else:
        parts = [_lines(opened)]
        parts += [_tensors(opened)] if tensors else []
        parts += [_kernels(opened)] if kernels else []
        print("\n".join(line for part in parts for line in part))


def _lines(bundle: Bundle) -> Iterator[str]:
    from ondevice.bundle.program import KV_BLOCK_TOKENS

    manifest, model = bundle.manifest, bundle.manifest.model
    yield f"{manifest.name} for {manifest.target} ({', '.join(manifest.variants)})"
    yield f"  {model.architecture}: {model.layers} layers of {model.hidden_size}"
    yield f"  vocabulary {model.vocab_size}, context {model.context_tokens} tokens"
    yield f"  keys and values in {model.kv_dtype}, steps of {model.prefill_chunk_tokens} tokens"
    program = manifest.program
    yield (
        f"  program {manifest.abi_hash[:16]}, format {manifest.format_version}: "
        f"{program.launches} launches of {len(program.kernels)} kernels"
    )
    kv_bytes = program.kv_block_bytes // KV_BLOCK_TOKENS
    yield f"  memory: {program.step_bytes:,} bytes for a step, {kv_bytes:,} per token of context"
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


def _tensors(bundle: Bundle) -> Iterator[str]:
    yield ""
    yield f"  {'tensor':38} {'shape':>14} {'scheme':>14} {'offset':>14} {'bytes':>14}"
    for tensor in bundle.manifest.weights.tensors:
        shape, scheme = " x ".join(map(str, tensor.shape)), tensor.scheme or tensor.layout
        place = f"{tensor.offset:14,} {tensor.size_bytes:14,}"
        yield f"  {tensor.name:38} {shape:>14} {scheme:>14} {place}"


def _kernels(bundle: Bundle) -> Iterator[str]:
    yield ""
    yield f"  {'kernels':30} each as {', '.join(bundle.manifest.variants)}"
    for symbol in bundle.manifest.program.kernels:
        yield f"  {symbol}"
