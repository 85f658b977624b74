"""Running a traced graph as a runtime would: paged cache, ragged batches, conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ondevice.bundle.program import KV_BLOCK_TOKENS, Rope
from ondevice.checkpoint.open import open_checkpoint
from ondevice.checkpoint.weights import bind
from ondevice.graph.interpret import interpret
from ondevice.graph.verify import verify
from ondevice.models import family_of, trace
from ondevice.models.family import ModelConfig

Piece = tuple[int, Sequence[int]]  # a conversation and its next tokens


def rope_rows(rope: Rope, positions: np.ndarray) -> np.ndarray:
    """f32[S, D]: cos and sin of float32(position) * inv_freq, the product in float32."""
    inv_freq = np.array(rope.inv_freq, np.float32)
    angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    rows = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * rope.scale
    return rows.astype(np.float32)


class Model:
    """A checkpoint, traced and interpreted, with the state of a few conversations."""

    def __init__(self, path: Path, conversations: int = 2, blocks: int = 2) -> None:
        with open_checkpoint(path) as checkpoint:
            family = family_of(checkpoint.architecture)
            self.config: ModelConfig = family.parse_config(checkpoint.config)
            bound = bind(family.weights(self.config), checkpoint.tensors)
            self.weights = {n: t.read_rows(0, t.shape[0]) for n, t in bound.items()}
        context_tokens = blocks * KV_BLOCK_TOKENS
        self.graph = verify(trace(family, self.config, context_tokens=context_tokens))
        pool = next(v.type for v in self.graph.inputs if v.name == "kv").shape[1:]
        count = conversations * blocks
        # NaN where nothing was written, and blocks out of order: reading a wrong place shows.
        self.kv = np.full((count, *(d.static for d in pool)), np.nan, np.float32)
        self.block_table = np.arange(count, dtype=np.int32)[::-1].reshape(conversations, blocks)
        self.lengths = [0] * conversations

    def step(self, *pieces: Piece) -> np.ndarray:
        """Logits f32[tokens of the step, vocab] of a ragged batch."""
        tokens = np.array([t for _, piece in pieces for t in piece], np.int32)
        sequence = np.array([c for c, piece in pieces for _ in piece], np.int32)
        positions = [self.lengths[c] + i for c, piece in pieces for i in range(len(piece))]
        inputs = {
            "tokens": tokens,
            "positions": np.array(positions, np.int32),
            "sequence": sequence,
            "block_table": self.block_table,
            "logit_rows": np.arange(len(tokens), dtype=np.int32),
            "rope": rope_rows(self.config.rope, np.array(positions)),
            "kv": self.kv,
        }
        logits, self.kv = interpret(self.graph, inputs, self.weights).values()
        for conversation, piece in pieces:
            self.lengths[conversation] += len(piece)
        return logits


@pytest.fixture
def load() -> Iterator[Callable[..., Model]]:
    yield Model


@pytest.fixture
def stories260k() -> Path:
    """The trained model that the repository carries."""
    return Path(__file__).parents[2] / "recipes" / "stories260K"
