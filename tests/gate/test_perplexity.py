"""Perplexity equals that of transformers; texts that cannot be scored are refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ondevice.bundle.read import open_bundle
from ondevice.errors import OndeviceError
from ondevice.gate.perplexity import (
    Score,
    leading_token,
    negative_log_likelihood,
    perplexity,
    read_text,
    windows,
)
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.tokenizer import Tokenizer, open_tokenizer

CONTEXT = 100  # no multiple of a KV block, halves no multiple of 64


@pytest.fixture
def tokenizer(stories: Path) -> Tokenizer:
    bundle = open_bundle(stories)
    return open_tokenizer(bundle, bundle.libondevice)


def reference(tokens: list[int], first_scored: int) -> list[float]:
    """-ln p of each scored token by transformers in float32, windows made in the plainest way."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from ondevice.recipe import load_recipe

    model = transformers.AutoModelForCausalLM.from_pretrained(
        load_recipe("stories260k").model, dtype=torch.float32
    )
    losses = []
    for i in range(len(tokens) // CONTEXT):
        window = [1, *tokens[i * CONTEXT + 1 : (i + 1) * CONTEXT]]  # 1 is <s>
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0]
        table = torch.log_softmax(logits, -1)
        losses += [-float(table[p, window[p + 1]]) for p in range(first_scored, CONTEXT - 1)]
    return losses


@pytest.mark.parametrize(("score", "first_scored"), [("half", CONTEXT // 2), ("all", 0)])
def test_it_is_that_of_transformers(
    stories: Path, tokenizer: Tokenizer, text: str, score: Score, first_scored: int
) -> None:
    *_, result = perplexity(stories, text, context_tokens=CONTEXT, score=score)
    losses = reference(tokenizer.encode(text), first_scored)
    assert result.windows == result.windows_total >= 3
    assert result.scored_tokens == len(losses)
    assert result.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    spread = np.std(losses) / math.sqrt(len(losses) - 1)
    assert result.error == pytest.approx(result.value * spread, rel=1e-3)


def test_figures_run_along(stories: Path, text: str) -> None:
    results = list(perplexity(stories, text, context_tokens=64))
    assert [r.windows for r in results] == list(range(1, results[0].windows_total + 1))
    assert [r.scored_tokens for r in results] == [31 * r.windows for r in results]


def test_only_scored_rows_have_logits_and_few_at_once(
    stories: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(self: Conversation, tokens: list[int]) -> object:
        asked.append(len(tokens))
        return logits(self, tokens)

    logits = Conversation.logits
    monkeypatch.setattr(Conversation, "logits", spy)
    *_, result = perplexity(stories, text, context_tokens=200)
    assert max(asked) == 64
    assert sum(asked) == result.scored_tokens == 99 * result.windows


def test_windows_are_whole_and_begin_with_the_leading_token(tokenizer: Tokenizer) -> None:
    tokens = list(range(10, 20))
    assert list(windows(tokens, 4, None)) == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert list(windows(tokens, 5, 1)) == [[1, 11, 12, 13, 14], [1, 16, 17, 18, 19]]
    assert leading_token(tokenizer) == 1


def test_losses_of_large_logits() -> None:
    logits = np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32)
    assert negative_log_likelihood(logits.copy(), [2, 1]) == pytest.approx([2e4, math.log(3)])
    assert negative_log_likelihood(logits.copy(), [0, 1]) == pytest.approx([0, math.log(3)])


@pytest.mark.parametrize("context", [1, 513])
def test_a_window_must_fit_the_context(stories: Path, text: str, context: int) -> None:
    with pytest.raises(OndeviceError, match="must have 2 to 512"):
        next(perplexity(stories, text, context_tokens=context))


def test_a_text_shorter_than_a_window_is_refused(stories: Path) -> None:
    with pytest.raises(OndeviceError, match="less than one window of 512; take a longer text"):
        next(perplexity(stories, "Once upon a time"))


def test_a_text_may_be_cut_but_not_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("ab€", encoding="utf-8")
    assert [read_text(path, n) for n in (2, 3, 4, 5, 9)] == ["ab", "ab", "ab", "ab€", "ab€"]
    assert read_text(path) == "ab€"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no text"),
        (b" \n", "holds no text"),
        (b"ab\xff", "not UTF-8 text: byte 2"),
        (b"ab\xe2\x82", "not UTF-8 text: byte 2"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(OndeviceError, match=message):
        read_text(path)


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(OndeviceError, match="cannot read .*nowhere: No such file"):
        read_text(tmp_path / "nowhere")
