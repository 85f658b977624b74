"""The figures of a run as text: medians, ratios to the best peer, fractions of the ceilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from peers.contestants import CONTESTANTS, MODELS, tests_of

Sample = dict[str, Any]  # {"round", "model", "contestant", "test", "tokens_per_s", ...}
OURS = tuple(c.name for c in CONTESTANTS if not c.environment)


def series(samples: Sequence[Sample], model: str, test: str, key: str) -> dict[str, list[float]]:
    """For each contestant the figures `key` of its rounds."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        if (sample["model"], sample["test"]) == (model, test):
            found.setdefault(sample["contestant"], []).append(sample[key])
    return found


def fastest(figures: dict[str, list[float]]) -> str | None:
    """The peer with the highest median."""
    return best_peer({name: median(values) for name, values in figures.items()}, max)


def best_peer(figures: dict[str, float], pick: Callable[..., str | None] = min) -> str | None:
    """The peer with the least figure, or the highest; None where there is no peer."""
    peers = [name for name in figures if name not in OURS]
    return pick(peers, key=lambda name: figures[name], default=None)


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
            best = fastest(figures)
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


CEILINGS = {
    "dram_gb_per_s": "DRAM GB/s",
    "cached_gb_per_s": "cached GB/s",
    "int8_gop_per_s": "int8 Gop/s",
    "matrix_gop_per_s": "matrix Gop/s",
}


def shares(
    samples: Sequence[Sample], ceilings: Sequence[dict[str, Any]], model: str, test: str,
    contestant: str, key: str,
) -> list[float]:  # fmt: skip
    """Percent of a ceiling of the same round, for each round; none where it is not known.

    For a prompt a product counts two operations, attention none. For decoding the bytes are those
    of the weights that each token needs; unknown for peers whose files do not say.
    """
    kind = next(m for m in MODELS if m.name == model)
    asked = next(t for t in tests_of(kind) if t.name == test)
    found = []
    for sample in samples:
        about = (sample["model"], sample["test"], sample["contestant"])
        if about == (model, test, contestant):
            most = ceiling(ceilings, sample["round"], model, asked.threads, key)
            work = sample["streamed_bytes"] if asked.decodes else 2 * kind.parameters
            if work and most:
                found.append(100 * sample["tokens_per_s"] * work / 1e9 / most)
    return found


def ceiling_rows(
    samples: Sequence[Sample], ceilings: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[list[str]]:
    """model, test, ceiling, percent of it for each contestant; see `shares`."""
    for model in MODELS:
        for test in tests_of(model):
            keys = ("dram_gb_per_s",) if test.decodes else ("int8_gop_per_s", "matrix_gop_per_s")
            for key in keys:
                cells = []
                for name in names:
                    found = shares(samples, ceilings, model.name, test.name, name, key)
                    cells.append(f"{median(found):.0f}" if found else "-")
                if any(cell != "-" for cell in cells):
                    yield [model.name, test.name, CEILINGS[key].rsplit(" ", 1)[0], *cells]


def ceiling(
    ceilings: Sequence[dict[str, Any]], number: int, model: str, threads: int, key: str
) -> float:
    """Of the same round, model and number of threads; 0 where it was not measured."""
    about = (number, model, threads)
    near = (c for c in ceilings if (c["round"], c["model"], c["threads"]) == about)
    return float(next(near, {}).get(key, 0))


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """A table whose columns line up; the first `left` are words, the others figures."""
    widths = [max(len(line[i]) for line in [titles, *rows]) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(texts)} |"

    rule = [("-" * w) if i < left else f"{'-' * (w - 1)}:" for i, w in enumerate(widths)]
    return "\n".join([line(titles), line(rule), *map(line, rows)])


def ceiling_table(
    ceilings: Sequence[dict[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: for each number of threads the range of every ceiling."""
    rows = []
    for threads in sorted({c["threads"] for c in ceilings}):
        row = [str(threads), ceilings[0]["instruction"]]
        for key in CEILINGS:
            values = [c[key] for c in ceilings if c["threads"] == threads]
            row.append(f"{min(values):,.0f} to {max(values):,.0f}, median {median(values):,.0f}")
        rows.append(row)
    return ["threads", "instruction", *CEILINGS.values()], rows
