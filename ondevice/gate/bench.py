"""Speed of a bundle, measured and shown as llama-bench does.

`pp512` processes a prompt of 512 tokens, `tg128` generates 128 tokens one after another; `@ d1024`
says that the conversation already held 1024. A test runs once unmeasured, then `reps` times. Tokens
are random and new for each run, so that no cache of prompts can help; end tokens end nothing, and
nothing is guessed unless asked for: what follows random tokens repeats itself as no text does.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np

from ondevice.bundle.format import Manifest
from ondevice.bundle.program import KV_BLOCK_TOKENS
from ondevice.bundle.read import open_bundle
from ondevice.errors import OndeviceError, RuntimeFailure
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.engine import Engine
from ondevice.runtime.header import Status
from ondevice.runtime.sampling import Sampling


@dataclass(frozen=True)
class BenchTest:
    """Either `prompt_tokens` or `generated_tokens` is 0; `depth` tokens stand before them."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        kind = f"pp{self.prompt_tokens}" if self.prompt_tokens else f"tg{self.generated_tokens}"
        return f"{kind} @ d{self.depth}" if self.depth else kind

    @property
    def tokens(self) -> int:
        """What one run processes or generates."""
        return self.prompt_tokens or self.generated_tokens

    @property
    def context_tokens(self) -> int:
        """What the context must hold: generation starts from a token of its own."""
        return self.depth + self.tokens + (1 if self.generated_tokens else 0)


@dataclass(frozen=True)
class BenchRow:
    """Figures of one test; `samples` are tokens per second, one for each repetition."""

    model: str
    size_bytes: int
    parameters: int
    threads: int
    variant: str
    test: BenchTest
    samples: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def stddev(self) -> float:
        """Of the samples; 0 for a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    def figures(self) -> dict[str, Any]:
        """The row for JSON."""
        return {
            **asdict(self),
            **asdict(self.test),
            "test": self.test.name,
            "reps": len(self.samples),
            "tokens_per_second": self.tokens_per_second,
            "stddev": self.stddev,
        }


def plan_tests(
    prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int]
) -> list[BenchTest]:
    """All tests, depth by depth; a 0 among prompts or generations stands for none."""
    return [
        test
        for depth in depths
        for test in (
            *(BenchTest(prompt_tokens=n, depth=depth) for n in prompts if n),
            *(BenchTest(generated_tokens=n, depth=depth) for n in generations if n),
        )
    ]


def bench(
    bundle: str | os.PathLike[str],
    tests: Sequence[BenchTest],
    threads: Sequence[int | None] = (None,),
    reps: int = 5,
    drafts: bool = False,
) -> Iterator[BenchRow]:
    """A row for each test and number of threads (None: one per core), as it is measured.

    With `drafts` generation guesses from the conversation where that pays, as chats do.

    Raises OndeviceError where a test does not fit the context.
    """
    manifest = open_bundle(bundle).manifest
    for test in tests:
        if test.context_tokens > manifest.model.context_tokens:
            raise OndeviceError(
                f"{test.name} needs a context of {test.context_tokens} tokens, "
                f"the bundle has {manifest.model.context_tokens}"
            )
    blocks = -(-max((t.context_tokens for t in tests), default=1) // KV_BLOCK_TOKENS)
    for count in threads:
        with Engine(
            bundle,
            threads=count,
            conversations=1,
            kv_blocks=blocks,
            draft_tokens=0 if drafts else -1,
        ) as engine:
            for test in tests:
                yield _row(engine, manifest, test, _samples(engine, test, reps))


def _row(engine: Engine, manifest: Manifest, test: BenchTest, samples: list[float]) -> BenchRow:
    tensors = manifest.weights.tensors
    return BenchRow(
        model=f"{manifest.name} {_main_scheme(manifest)}",
        size_bytes=manifest.weights.size_bytes,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        threads=engine.info.threads,
        variant=engine.info.variant,
        test=test,
        samples=tuple(samples),
    )


def _main_scheme(manifest: Manifest) -> str:
    """The scheme of most weights."""
    counts: dict[str, int] = {}
    for tensor in manifest.weights.tensors:
        counts[tensor.scheme] = counts.get(tensor.scheme, 0) + math.prod(tensor.shape)
    return max(counts, key=lambda scheme: counts[scheme])


def _samples(engine: Engine, test: BenchTest, reps: int) -> list[float]:
    """Tokens per second of each repetition, after one that is not measured."""
    random = np.random.default_rng(0)
    vocab = engine.info.vocab_size
    samples = []
    with engine.conversation() as conversation:
        if test.depth:
            drain(conversation, random.integers(vocab, size=test.depth).tolist(), 0)
        for _ in range(reps + 1):
            tokens = random.integers(vocab, size=max(1, test.prompt_tokens)).tolist()
            if test.generated_tokens:
                elapsed_s = generate_s(conversation, tokens, test.generated_tokens)
            else:
                elapsed_s = prompt_s(conversation, tokens)
            samples.append(test.tokens / elapsed_s)
            conversation.rewind(test.depth)
    return samples[1:]


def prompt_s(conversation: Conversation, tokens: list[int]) -> float:
    """Seconds to process a prompt and, as in use, to sample the token that follows it."""
    started_ns = perf_counter_ns()
    try:
        drain(conversation, tokens, 1)
    except RuntimeFailure as error:
        if error.status != Status.CONTEXT_FULL:  # no room for that token, but it was computed
            raise
    return (perf_counter_ns() - started_ns) / 1e9


def generate_s(conversation: Conversation, tokens: list[int], count: int) -> float:
    """Seconds to generate `count` tokens by the engine's clock, whatever their reader does."""
    drain(conversation, tokens, count)
    stats = conversation.stats
    first_s = stats.first_token_ms / 1e3
    return first_s if count == 1 else first_s + (count - 1) / stats.tokens_per_second


_NO_STOP = Sampling(stop_tokens=())


def drain(conversation: Conversation, tokens: list[int], max_tokens: int) -> None:
    """One submit, read to its end; no token ends it early."""
    deque(conversation.generate_tokens(tokens, max_tokens, _NO_STOP), maxlen=0)


def print_header() -> str:
    """The first two lines of the table."""
    titles = ("model", "size", "params", "threads", "test", "t/s")
    cells = [_pad(title, i) for i, title in enumerate(titles)]
    rules = [
        "-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(COLUMN_WIDTHS)
    ]
    return f"| {' | '.join(cells)} |\n| {' | '.join(rules)} |"


COLUMN_WIDTHS = (30, 10, 10, 7, 15, 20)


def print_row(row: BenchRow) -> str:
    """One line of the table."""
    cells = (
        row.model,
        _bytes(row.size_bytes),
        _count(row.parameters),
        str(row.threads),
        row.test.name,
        f"{row.tokens_per_second:.2f} ± {row.stddev:.2f}",
    )
    return f"| {' | '.join(_pad(cell, i) for i, cell in enumerate(cells))} |"


def _pad(cell: str, column: int) -> str:
    width = COLUMN_WIDTHS[column]
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
