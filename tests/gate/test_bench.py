"""Benchmarks run what they say and are shown as llama-bench shows them. No times are asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ondevice.errors import OndeviceError
from ondevice.gate.bench import (
    BenchRow,
    BenchTest,
    bench,
    plan_tests,
    print_header,
    print_row,
)
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.sampling import Sampling


def row(test: BenchTest, *samples: float) -> BenchRow:
    return BenchRow("tiny int4_g32", 91_382_080, 134_515_008, 2, "avx2", test, samples)


def test_names_are_those_of_llama_bench() -> None:
    names = [test.name for test in plan_tests([512, 0], [128, 32], [0, 1024])]
    plain, deep = names[:3], names[3:]
    assert plain == ["pp512", "tg128", "tg32"]
    assert deep == ["pp512 @ d1024", "tg128 @ d1024", "tg32 @ d1024"]


def test_a_row_is_mean_and_deviation() -> None:
    figures = row(BenchTest(prompt_tokens=512, depth=64), 10.0, 12.0, 14.0).figures()
    assert figures["test"] == "pp512 @ d64"
    assert (figures["tokens_per_second"], figures["stddev"]) == (12.0, 2.0)
    assert (figures["reps"], figures["depth"], figures["threads"]) == (3, 64, 2)
    assert json.loads(json.dumps(figures))["samples"] == [10.0, 12.0, 14.0]
    assert row(BenchTest(generated_tokens=1), 10.0).stddev == 0.0


def test_the_table_is_markdown_with_columns_of_one_width() -> None:
    head, rule = print_header().splitlines()
    line = print_row(row(BenchTest(prompt_tokens=512), 10.0, 12.0))
    bars = [i for i, character in enumerate(head) if character == "|"]
    assert all([i for i, c in enumerate(text) if c == "|"] == bars for text in (rule, line))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["tiny int4_g32", "87.15 MiB", "134.52 M", "2", "pp512", "11.00 ± 1.41"]


def test_each_test_runs_for_each_number_of_threads(stories: Path) -> None:
    rows = list(bench(stories, plan_tests([16], [4], [0, 8]), threads=[1, 2], reps=2))
    assert [r.threads for r in rows] == [1] * 4 + [2] * 4
    assert [r.test.name for r in rows[:4]] == ["pp16", "tg4", "pp16 @ d8", "tg4 @ d8"]
    assert all(len(r.samples) == 2 and min(r.samples) > 0 for r in rows)
    assert rows[0].model == "stories260k f32"
    assert rows[0].parameters == 260_032


def test_a_test_is_one_submit_of_new_tokens_that_nothing_ends_early(
    stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, prompts = [], []

    def spy(self: Conversation, tokens: list[int], count: int, sampling: Sampling) -> object:
        assert sampling == Sampling(stop_tokens=())
        prompts.append(tuple(tokens))
        yield from generate(self, tokens, count, sampling)
        lengths.append(self.length)

    generate = Conversation.generate_tokens
    monkeypatch.setattr(Conversation, "generate_tokens", spy)
    list(bench(stories, [BenchTest(generated_tokens=300, depth=40)], reps=2))
    assert lengths == [40, 341, 341, 341]  # the depth once, then a first token and 300 more
    assert len(set(prompts)) == 4


@pytest.mark.parametrize("drafts", [False, True])
def test_nothing_is_guessed_unless_asked_for(
    stories: Path, monkeypatch: pytest.MonkeyPatch, drafts: bool
) -> None:
    guessed = []

    def spy(self: Conversation, tokens: list[int], count: int, sampling: Sampling) -> object:
        yield from generate(self, tokens, count, sampling)
        guessed.append(self.stats.drafted_tokens)

    generate = Conversation.generate_tokens
    monkeypatch.setattr(Conversation, "generate_tokens", spy)
    list(bench(stories, [BenchTest(generated_tokens=400)], reps=2, drafts=drafts))
    assert any(guessed) == drafts  # the stories model soon repeats itself


def test_a_prompt_may_fill_the_context(stories: Path) -> None:
    (full,) = bench(stories, [BenchTest(prompt_tokens=500, depth=12)], reps=1)
    assert full.tokens_per_second > 0


@pytest.mark.parametrize(
    "test", [BenchTest(prompt_tokens=513), BenchTest(generated_tokens=500, depth=12)]
)
def test_a_test_that_does_not_fit_is_refused(stories: Path, test: BenchTest) -> None:
    with pytest.raises(OndeviceError, match="needs a context of 513 tokens, the bundle has 512"):
        next(bench(stories, [test]))
