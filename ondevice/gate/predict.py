"""What a build will weigh, from its shapes alone: no checkpoint is read and nothing compiled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ondevice import targets
from ondevice.build import rewrite
from ondevice.bundle.descriptor import WEIGHTS_DATA_START
from ondevice.bundle.program import KV_BLOCK_TOKENS, step_bytes
from ondevice.checkpoint.open import architecture_of
from ondevice.models import family_of
from ondevice.passes.plan_memory import slots
from ondevice.quant.policy import plan
from ondevice.recipe import Recipe

# Not counted but allowed for: libraries, runner, header and manifest are 0.3 to 1.1 MB, a compiled
# tokenizer is 40 to 90 bytes for each token of its vocabulary.
CODE_BYTES = 1_200_000
TOKEN_BYTES = 90
LAYERS = 3  # traced: the memory of a step is used again by every further layer


@dataclass(frozen=True)
class Prediction:
    """Sizes in bytes. `weights` is exact, `bundle` right to about a megabyte."""

    recipe: str
    target: str
    parameters: int
    context_tokens: int
    weights_bytes: int
    bundle_bytes: int
    step_bytes: int  # of the largest step
    kv_bytes: int  # of one full context

    @property
    def memory_bytes(self) -> int:
        """Of a process that has filled its context: weights, a step, keys and values."""
        return self.weights_bytes + self.step_bytes + self.kv_bytes


def predict(recipe: Recipe, config: Mapping[str, Any], target: str) -> Prediction:
    """The sizes of `recipe` for `target`, of a model with this config.json.

    Raises OndeviceError where such a build would.
    """
    family = family_of(architecture_of(Path("config.json"), config))
    parsed = family.parse_config(config)
    row = targets.load(target)
    few = replace(parsed, layers=min(parsed.layers, LAYERS))
    planned = rewrite(family, few, recipe, row)
    assert planned is not None  # nothing was to stop it
    frame = planned.frame
    weights = plan(family.weights(parsed).shapes(), recipe.quant)
    weights_bytes = WEIGHTS_DATA_START + weights.size_bytes
    kv_block_bytes = frame.kv.block_bytes // few.layers * parsed.layers
    chunk = frame.prefill_chunk_tokens
    return Prediction(
        recipe=recipe.name,
        target=row.name,
        parameters=family.weights(parsed).parameters(),
        context_tokens=frame.context_tokens,
        weights_bytes=weights_bytes,
        bundle_bytes=weights_bytes + CODE_BYTES + TOKEN_BYTES * frame.vocab_size,
        step_bytes=step_bytes(slots(planned.graph), chunk, frame.logit_rows, frame.vocab_size),
        kv_bytes=-(-frame.context_tokens // KV_BLOCK_TOKENS) * kv_block_bytes,
    )


def read_config(path: Path) -> dict[str, Any]:
    """A config.json that ships inside the package."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
