"""A whole run as markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peers import table
from peers.contestants import CONTESTANTS
from peers.goals import MB, Figures, goal_rows
from peers.quality import WINDOW_TOKENS, WINDOWS
from peers.run import Run

START = {
    "load_s": ("opened s", 1),
    "first_token_s": ("first token warm s", 1),
    "cold_s": ("cold s", 1),
    "touched_bytes": ("touched cold MB", MB),
    "read_bytes_per_s": ("read MB/s", MB),
    "private_dirty_bytes": ("private dirty MB", MB),
}
HALF = {
    "limit_bytes": ("memory MB", MB),
    "missing_bytes": ("missing MB", MB),
    "read_bytes_per_s": ("read MB/s", MB),
    "tokens_per_s": ("tok/s", 1),
}
BUILD = {
    "seconds": ("s", 1),
    "peak_rss_bytes": ("peak RSS MB", MB),
    "peak_pss_bytes": ("peak PSS MB", MB),
    "code_s": ("code s", 1),
    "kernels_s": ("of it kernels s", 1),
    "weights_s": ("weights s", 1),
}


def report(run: Run, names: list[str]) -> str:
    """All tables, the goals last."""
    parts = [*speeds(run, names), *other_rows(run)]
    if run.perplexity:
        rows = [
            [name, "", f"{row['perplexity']:.3f}", str(row["scored_tokens"])]
            for name, row in run.perplexity.items()
        ]
        parts += [
            f"Perplexity of SmolLM2, second halves of the first {WINDOWS} windows of "
            f"{WINDOW_TOKENS} tokens of the text:",
            table.markdown(["weights", "", "perplexity", "tokens"], rows),
        ]
    goals = goal_rows(Figures(run.samples, run.ceilings, run.rows, run.perplexity))
    if goals:
        titles = ["work", "must reach", "ondevice", "best peer", "measured", "reached"]
        parts += ["Goals:", table.markdown(titles, goals, left=6)]
    for reason in dict.fromkeys(run.left_out.values()):
        whom = [what for what, why in run.left_out.items() if why == reason]
        parts.append(f"Without {', '.join(whom)}: {reason}")
    used = {c.environment for c in CONTESTANTS if c.name in names} - {""}
    for name in sorted(used):
        stamp = run.cache.stamp(name)
        parts.append(" ".join([f"{name}:", *stamp["packages"], stamp["note"]]).strip())
    return "\n\n".join(parts)


def speeds(run: Run, names: list[str]) -> Iterator[str]:
    """Tokens per second, CPU time, percentages of the ceilings, the ceilings."""
    if not run.samples:
        return
    ours = [f"{name} / best" for name in table.OURS if name in names]
    rows = list(table.speed_rows(run.samples, names))
    yield "Tokens per second, medians, and ours divided by the best peer's:"
    yield table.markdown(["model", "test", *names, *ours, "best"], rows)
    yield "CPU milliseconds per token, of all threads:"
    yield table.markdown(["model", "test", *names], list(table.cost_rows(run.samples, names)))
    yield "Percent of the ceilings measured in the same round:"
    yield table.markdown(
        ["model", "test", "ceiling", *names],
        list(table.ceiling_rows(run.samples, run.ceilings, names)),
        left=3,
    )
    yield "Ceilings, least to most of the rounds:"
    yield table.markdown(*table.ceiling_table(run.ceilings))


def other_rows(run: Run) -> Iterator[str]:
    """The rows that are no speeds, and for which a goal's line says too little."""
    about = {
        "start": ("Start of 1.1b, a prompt of 8 tokens; private memory after one of 512:", START),
        "half": ("1.1b in half the memory of its weights:", HALF),
        "build": ("Build of 1.1b, all processes:", BUILD),
    }
    for name, (title, columns) in about.items():
        rows = run.rows.get(name, {})
        if rows:
            yield title
            yield table.markdown(
                ["of", "", *(text for text, _ in columns.values())],
                [[who, "", *cells(row, columns)] for who, row in rows.items()],
            )
    for found in run.rows.get("drafts", {}).values():
        yield "SmolLM2 with guesses from the conversation:"
        yield table.markdown(
            ["prompt", "kind", "tokens", "plain tok/s", "with guesses", "ratio", "right"],
            [
                [name, kind, str(row["tokens"]), f"{row['plain']:.0f}", f"{row['drafting']:.0f}",
                 f"{row['ratio']:.2f}", f"{row['accepted']} of {row['drafted']}"]
                for kind, rows in found.items() for name, row in rows.items()
            ],
        )  # fmt: skip


def cells(row: dict[str, Any], columns: dict[str, tuple[str, float]]) -> list[str]:
    lacking = "killed" if "killed" in row else "-"
    return [
        f"{row[key] / scale:.3g}" if key in row else lacking for key, (_, scale) in columns.items()
    ]
