"""The compiled model against transformers in float32."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import numpy as np
import pytest

from ondevice.runtime.engine import Engine

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

# As a part of the range of the logits: float32 rounding, in other orders. Measured: 8e-7.
TOLERANCE = 1e-5
Expected = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def expected() -> Expected:
    """Logits f32[n, vocab] of n tokens by transformers."""
    path = str(files("ondevice.recipes") / "stories260K")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def logits(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a part of the range of the logits."""
    return float(np.abs(actual - expected).max() / (expected.max() - expected.min()))


def test_logits_of_a_story(engine: Engine, story: list[int], expected: Expected) -> None:
    assert relative_difference(engine.logits(story), expected(story)) < TOLERANCE


def test_logits_of_random_tokens(engine: Engine, expected: Expected) -> None:
    tokens = np.random.default_rng(0).integers(0, 512, 300).tolist()
    assert relative_difference(engine.logits(tokens), expected(tokens)) < TOLERANCE


def test_200_greedy_tokens(engine: Engine, expected: Expected) -> None:
    tokens = engine.tokenizer.encode("Tom had a red ball")
    generated = list(engine.generate_tokens(tokens, max_tokens=200))
    assert len(generated) == 200
    # Each token is the likeliest after those before it, so all of them are.
    likeliest = expected([*tokens, *generated]).argmax(axis=1)
    assert generated == likeliest[len(tokens) - 1 : -1].tolist()
