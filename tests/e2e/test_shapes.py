"""A model wider than the one that ships, where many activations share memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ondevice.build import build
from ondevice.recipe import load_recipe
from ondevice.runtime.engine import Engine

SCRIPT = Path(__file__).parents[2] / "scripts" / "random_checkpoint.py"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers of 15m's shapes, int4."""
    home = tmp_path_factory.mktemp("wide")
    command = [sys.executable, SCRIPT, "15m", home / "checkpoint", "--layers", "2"]
    subprocess.run(command, check=True, capture_output=True)
    recipe = load_recipe(str(home / "checkpoint"), settings=["quant.default=int4_g32"])
    return build(recipe, home / "wide.bundle")


def test_prompts_of_any_length_give_the_logits_of_single_tokens(wide: Path) -> None:
    """Around the tiles of 2, 4, 8 and 16 rows, and across the blocks of the KV cache."""
    tokens = [int(t) for t in np.random.default_rng(1).integers(3, 30000, 40)]
    with Engine(wide, threads=2) as engine:
        with engine.conversation() as conversation:
            single = np.concatenate([conversation.logits([t]) for t in tokens])
        assert np.isfinite(single).all()
        for length in (2, 3, 5, 8, 9, 16, 17, 33, 40):
            assert engine.logits(tokens[:length]).tobytes() == single[:length].tobytes(), length
