"""The figures of a run as text: medians, ratios to the best peer, fractions of the ceilings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from peers.contestants import CONTESTANTS, MODELS, Test, tests_of

Sample = dict[str, Any]  # {"round", "model", "contestant", "test", "tokens_per_s", ...}
OURS = tuple(c.name for c in CONTESTANTS if not c.environment)


def series(samples: Sequence[Sample], model: str, test: str, key: str) -> dict[str, list[float]]:
    """For each contestant the figures `key` of its rounds."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        if (sample["model"], sample["test"]) == (model, test):
            found.setdefault(sample["contestant"], []).append(sample[key])
    return found


def best_peer(figures: dict[str, list[float]]) -> str | None:
    """The peer with the highest median."""
    peers = [name for name in figures if name not in OURS]
    return max(peers, key=lambda name: median(figures[name]), default=None)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the rounds' ratios."""
    return median(a / b for a, b in zip(ours, theirs, strict=False))


def speed_rows(samples: Sequence[Sample], names: Sequence[str]) -> Iterator[list[str]]:
    """model, test, median tokens per second of each contestant, ours over the best peer's."""
    for model in MODELS:
        for test in tests_of(model):
            figures = series(samples, model.name, test.name, "tokens_per_s")
            if not figures:
                continue
            best = best_peer(figures)
            row = [model.name, test.name]
            row += [number(median(figures[n])) if n in figures else "-" for n in names]
            for name in OURS:
                if name in names:
                    known = best is not None and name in figures
                    row.append(f"{ratio(figures[name], figures[str(best)]):.2f}" if known else "-")
            yield [*row, best or "-"]


def cost_rows(samples: Sequence[Sample], names: Sequence[str]) -> Iterator[list[str]]:
    """model, test, CPU milliseconds per token of each contestant."""
    for model in MODELS:
        for test in tests_of(model):
            figures = series(samples, model.name, test.name, "cpu_s_per_token")
            if figures:
                cells = (f"{1e3 * median(figures[n]):.3g}" if n in figures else "-" for n in names)
                yield [model.name, test.name, *cells]


def ceiling_rows(
    samples: Sequence[Sample], ceilings: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[list[str]]:
    """Prefill as a fraction of the int8 peak, decode of the bytes read, in percent.

    A product counts two operations, attention none. Bytes are those of the weights that each token
    needs; unknown for peers whose files do not say.
    """
    for model in MODELS:
        for test in tests_of(model):
            cells = [model.name, test.name]
            for name in names:
                fractions = []
                for sample in samples:
                    about = (sample["model"], sample["test"], sample["contestant"])
                    if about == (model.name, test.name, name):
                        most = ceiling(ceilings, sample["round"], model.name, test)
                        work = sample["streamed_bytes"] if test.decodes else 2 * model.parameters
                        fractions.append(sample["tokens_per_s"] * work / 1e9 / most)
                known = fractions and max(fractions) > 0
                cells.append(f"{100 * median(fractions):.0f}" if known else "-")
            if any(cell != "-" for cell in cells[2:]):
                yield cells


def ceiling(ceilings: Sequence[dict[str, Any]], number: int, model: str, test: Test) -> float:
    """Of the same round, model and number of threads: GB/s for decode, Gop/s for a prompt."""
    near = next(
        found
        for found in ceilings
        if (found["round"], found["model"], found["threads"]) == (number, model, test.threads)
    )
    return float(near["dram_gb_per_s" if test.decodes else "int8_gop_per_s"])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up."""
    widths = [max(len(line[i]) for line in [titles, *rows]) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(texts)} |"

    rule = [("-" * w) if i < 2 else f"{'-' * (w - 1)}:" for i, w in enumerate(widths)]
    return "\n".join([line(titles), line(rule), *map(line, rows)])


def ceiling_table(
    ceilings: Sequence[dict[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: for each number of threads the range of every ceiling."""
    keys = {
        "dram_gb_per_s": "DRAM GB/s",
        "cached_gb_per_s": "cached GB/s",
        "int8_gop_per_s": "int8 Gop/s",
    }
    rows = []
    for threads in sorted({c["threads"] for c in ceilings}):
        row = [str(threads), ceilings[0]["instruction"]]
        for key in keys:
            values = [c[key] for c in ceilings if c["threads"] == threads]
            row.append(f"{min(values):,.0f} to {max(values):,.0f}, median {median(values):,.0f}")
        rows.append(row)
    return ["threads", "instruction", *keys.values()], rows
