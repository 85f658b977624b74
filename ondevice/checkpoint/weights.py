"""The declarative map from our weight names to a checkpoint's, and its check against one.

Silence is how conversions go wrong, so the check is total: every tensor of the checkpoint is used,
or is named here as one to ignore; every tensor we need is there with the right shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ondevice.checkpoint.safetensors import TensorInfo
from ondevice.errors import CheckpointError

COMPARED_BYTES = 1 << 20  # read at once when two tensors are compared


@dataclass(frozen=True)
class WeightRow:
    """One weight: our name, their name, and its shape. Both names may hold `{layer}`."""

    ours: str
    theirs: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightMap:
    """All weights of a model.

    `ignored` are their names (with `{layer}`) that may occur and are not needed: buffers that are
    computed. `copies` are (name, original) pairs of theirs: a tied head that was saved nevertheless
    is dropped after checking that it equals the original byte for byte.
    """

    rows: tuple[WeightRow, ...]
    layers: int
    ignored: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()

    def expanded(self) -> Iterator[WeightRow]:
        """The rows in the order of the model, one for each layer where they name one."""
        for group in _grouped(self.rows):
            for layer in range(self.layers if "{layer}" in group[0].ours else 1):
                for row in group:
                    yield WeightRow(
                        row.ours.format(layer=layer), row.theirs.format(layer=layer), row.shape
                    )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our name -> shape of every weight."""
        return {row.ours: row.shape for row in self.expanded()}

    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(math.prod(shape) for shape in self.shapes().values())


def _grouped(rows: tuple[WeightRow, ...]) -> list[list[WeightRow]]:
    """Runs of neighbours that all name a layer, or that all do not."""
    groups: list[list[WeightRow]] = []
    for row in rows:
        if groups and ("{layer}" in groups[-1][0].ours) == ("{layer}" in row.ours):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def bind(weights: WeightMap, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Our name -> tensor of the checkpoint, for every weight.

    Raises CheckpointError for a missing tensor, a wrong shape, a tensor that nothing uses, and a
    copy that differs from its original.
    """
    bound = {row.ours: _find(row, tensors) for row in weights.expanded()}
    used = {tensor.name for tensor in bound.values()}
    ignored = {
        name.format(layer=layer) for name in weights.ignored for layer in range(weights.layers)
    }
    copies = dict(weights.copies)
    for name, tensor in tensors.items():
        if name in used or name in ignored:
            continue
        if name not in copies:
            raise CheckpointError(
                f"{tensor.file}: nothing uses the tensor {name!r} {list(tensor.shape)}; the "
                "architecture in config.json is not the one that these weights belong to"
            )
        if not _same_bytes(tensor, tensors[copies[name]]):
            raise CheckpointError(
                f"{tensor.file}: config.json ties {name!r} to {copies[name]!r}, but the saved "
                'tensors differ; set "tie_word_embeddings": false to use both'
            )
    return bound


def _find(row: WeightRow, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    if row.theirs not in tensors:
        raise CheckpointError(
            f"the checkpoint has no tensor {row.theirs!r} {list(row.shape)}, which its config.json "
            "calls for; download it again"
        )
    tensor = tensors[row.theirs]
    if tensor.shape != row.shape:
        raise CheckpointError(
            f"{tensor.file}: {row.theirs!r} has shape {list(tensor.shape)}, but config.json makes "
            f"it {list(row.shape)}"
        )
    return tensor


def _same_bytes(left: TensorInfo, right: TensorInfo) -> bool:
    """Compare in pieces, so that a large head never lies in memory whole."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    for begin in range(0, left.size_bytes, COMPARED_BYTES):
        end = min(begin + COMPARED_BYTES, left.size_bytes)
        if left.read_bytes(begin, end) != right.read_bytes(begin, end):
            return False
    return True
