"""The plan of a build's weights: a scheme and a place for every tensor, before any is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ondevice.bundle.program import WeightEntry
from ondevice.dtypes import f32
from ondevice.errors import RecipeError
from ondevice.graph.graph import TensorType
from ondevice.quant.scheme import PLAIN, scheme_named
from ondevice.recipe import QuantRecipe

ALIGN_BYTES = 64
EMBEDDINGS = ("embed.weight", "head.weight")
EMBEDDING_SCHEME = "int8_g256"  # the head chooses between tokens: finer than the rest


@dataclass(frozen=True)
class WeightPlan:
    """The tensors of the weights file in order, and their types as the graph sees them."""

    entries: tuple[WeightEntry, ...]
    types: Mapping[str, TensorType]

    @property
    def size_bytes(self) -> int:
        """Length of the data: every tensor starts at a multiple of 64 bytes."""
        last = self.entries[-1]
        return aligned(last.offset + last.size_bytes)


def plan(shapes: Mapping[str, tuple[int, ...]], recipe: QuantRecipe) -> WeightPlan:
    """Choose a scheme for every matrix by the recipe's rules; vectors stay plain f32.

    `shapes` maps our names to shapes [N, K] or [N]. Raises RecipeError on a rule that matches no
    tensor and on unknown schemes.
    """
    _check_rules(shapes, recipe)
    entries, types, offset = [], {}, 0
    for name, shape in shapes.items():
        if len(shape) == 1:
            entry = WeightEntry(name, PLAIN, shape, "plain", offset, shape[0] * f32.bytes)
        else:
            scheme = scheme_named(scheme_for(name, recipe))
            packed = scheme.packed_bytes(*shape)
            entry = WeightEntry(name, scheme.name, shape, scheme.layout, offset, packed)
        entries.append(entry)
        types[name] = TensorType.of(f32, *shape, scheme=entry.scheme)
        offset = aligned(offset + entry.size_bytes)
    return WeightPlan(tuple(entries), types)


def scheme_for(name: str, recipe: QuantRecipe) -> str:
    """The scheme of the first rule whose glob matches `name`, else the recipe's default."""
    for glob, scheme in recipe.rules:
        if fnmatchcase(name, glob):
            return scheme
    if name not in EMBEDDINGS:
        return recipe.default
    if recipe.embedding != "auto":
        return recipe.embedding
    few_bits = scheme_named(recipe.default).bits < scheme_named(EMBEDDING_SCHEME).bits
    return EMBEDDING_SCHEME if few_bits else recipe.default


def aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


def _check_rules(names: Iterable[str], recipe: QuantRecipe) -> None:
    for glob, scheme in recipe.rules:
        scheme_named(scheme)
        if not any(fnmatchcase(name, glob) for name in names):
            raise RecipeError(f"quant.rules: {glob!r} matches no tensor of this model")
