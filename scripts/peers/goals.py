"""What is to be reached beside the best peer, and whether a run reached it.

Every goal is a row of GOALS: what must hold, and a function that judges the figures of a run. It
returns None where the run did not measure what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from peers import contestants as names
from peers import table
from peers.quality import compared

LLAMA = "llama.cpp-q4_0"
MB = 1e6


@dataclass(frozen=True)
class Verdict:
    """`ours` and `peer` with their units, `measured` in the terms of what must hold."""

    ours: str
    peer: str
    measured: str
    reached: bool


@dataclass(frozen=True)
class Figures:
    """What a run measured; a line of its JSON file each."""

    samples: list[table.Sample]
    ceilings: list[dict[str, Any]]
    rows: dict[str, Any]
    perplexity: dict[str, Any]

    @property
    def us(self) -> str:
        """The first contestant of ours that was measured."""
        seen = {sample["contestant"] for sample in self.samples} | {
            name for row in self.rows.values() for name in row
        }
        return next((name for name in table.OURS if name in seen), table.OURS[0])

    def series(self, model: str, test: str, key: str = "tokens_per_s") -> dict[str, list[float]]:
        return table.series(self.samples, model, test, key)

    def row(self, name: str) -> Any:
        """Our figures of a row; None where it was not measured."""
        return self.rows.get(name, {}).get(self.us)

    def share(self, model: str, test: str, key: str) -> float | None:
        """Our percentage of a ceiling, median of rounds."""
        found = table.shares(self.samples, self.ceilings, model, test, self.us, key)
        return median(found) if found else None


Judge = Callable[[Figures], Verdict | None]


@dataclass(frozen=True)
class Goal:
    work: str
    must: str
    judge: Judge


# ---- speeds ----


def faster(model: str, test: str, least: float, peer: str = "") -> Judge:
    """Tokens per second, at least so many times those of the best peer, or of a named one."""

    def judge(figures: Figures) -> Verdict | None:
        speeds = figures.series(model, test)
        best = peer or table.fastest(speeds)
        if figures.us not in speeds or best not in speeds:
            return None
        ratio = table.ratio(speeds[figures.us], speeds[best])
        lacking = "" if peer else lacking_text(model, speeds)
        return Verdict(
            f"{table.number(median(speeds[figures.us]))} tok/s",
            f"{best} {table.number(median(speeds[best]))}{lacking}",
            f"{ratio:.2f}x{ceilings_text(figures, model, test)}",
            ratio >= least,
        )

    return judge


def lacking_text(model: str, speeds: dict[str, list[float]]) -> str:
    """, without openvino: the best of those that are there may not be the best."""
    kind = next(m for m in names.MODELS if m.name == model)
    peers = [c for c in names.CONTESTANTS if c.environment and c.default and c.measures(kind)]
    lacking = [c.name for c in peers if c.name not in speeds]
    return f", without {', '.join(lacking)}" if lacking else ""


def ceilings_text(figures: Figures, model: str, test: str) -> str:
    """; 40 % of int8 vectors, 9 % of the matrix unit."""
    decodes = next(t for t in names.TESTS if t.name == test).decodes
    keys = {"DRAM": "dram_gb_per_s", "last cache": "cached_gb_per_s"} if decodes else {
        "int8 vectors": "int8_gop_per_s", "matrix unit": "matrix_gop_per_s"
    }  # fmt: skip
    found = {name: figures.share(model, test, key) for name, key in keys.items()}
    parts = [f"{share:.0f} % of {name}" for name, share in found.items() if share]
    return f"; {', '.join(parts)}" if parts else ""


def either(first: Judge, model: str, test: str, least_percent: float) -> Judge:
    """`first`, or so many percent of the DRAM bandwidth measured in the same rounds."""

    def judge(figures: Figures) -> Verdict | None:
        verdict, share = first(figures), figures.share(model, test, "dram_gb_per_s")
        if verdict is None or share is None or verdict.reached:
            return verdict
        return Verdict(verdict.ours, verdict.peer, verdict.measured, share >= least_percent)

    return judge


def cheaper(model: str, most: float) -> Judge:
    """CPU time of a decoded token, at most so many times llama.cpp's."""

    def judge(figures: Figures) -> Verdict | None:
        costs = figures.series(model, names.DECODE, "cpu_s_per_token")
        if figures.us not in costs or LLAMA not in costs:
            return None
        ratio = table.ratio(costs[figures.us], costs[LLAMA])
        ours, theirs = (1e3 * median(costs[name]) for name in (figures.us, LLAMA))
        return Verdict(
            f"{ours:.3g} ms CPU", f"{LLAMA} {theirs:.3g}", f"{ratio:.2f}x", ratio <= most
        )

    return judge


def lost_at_depth(figures: Figures, name: str) -> float | None:
    """Percent of the speed at depth 0 that is lost at depth 2048."""
    flat, deep = (figures.series("1.1b", test) for test in (names.DECODE, names.DEEP))
    if name not in flat or name not in deep:
        return None
    return 100 * (1 - median(deep[name]) / median(flat[name]))


def depth(figures: Figures) -> Verdict | None:
    ours, theirs = (lost_at_depth(figures, name) for name in (figures.us, LLAMA))
    if ours is None:
        return None
    speed = median(figures.series("1.1b", names.DEEP)[figures.us])
    peer = "-" if theirs is None else f"{LLAMA} loses {theirs:.0f} %"
    return Verdict(f"{table.number(speed)} tok/s", peer, f"loses {ours:.1f} %", ours <= 12)


def int8_kv(figures: Figures) -> Verdict | None:
    speeds, small, large = figures.series("1.1b", names.DEEP), figures.us, "ondevice-kv16"
    if small not in speeds or large not in speeds:
        return None
    ratio = table.ratio(speeds[small], speeds[large])
    return Verdict(
        f"{table.number(median(speeds[small]))} tok/s",
        f"{large} {table.number(median(speeds[large]))}",
        f"{ratio:.2f}x",
        ratio >= 1,
    )


def busy(quiet: str, disturbed: str) -> Judge:
    """What of a speed is left beside a process that keeps one of the cores busy."""

    def judge(figures: Figures) -> Verdict | None:
        before, during = (figures.series("smollm2", test) for test in (quiet, disturbed))
        kept = {
            name: 100 * table.ratio(during[name], before[name]) for name in during if name in before
        }
        if figures.us not in kept:
            return None
        best = table.best_peer(kept, max)
        return Verdict(
            f"{table.number(median(during[figures.us]))} tok/s",
            f"{best} keeps {kept[best]:.0f} %" if best else "-",
            f"keeps {kept[figures.us]:.0f} %",
            kept[figures.us] >= 60,
        )

    return judge


def busy_gaps(figures: Figures) -> Verdict | None:
    def late(name: str) -> float:
        """95th percentile over median."""
        keys = ("gap_p95_s", "gap_s")
        high, middle = (figures.series("smollm2", names.BUSY_DECODE, key)[name] for key in keys)
        return table.ratio(high, middle)

    measured = figures.series("smollm2", names.BUSY_DECODE, "gap_s")
    if figures.us not in measured:
        return None
    best = table.best_peer({name: late(name) for name in measured})
    gap = 1e3 * median(measured[figures.us])
    return Verdict(
        f"median {gap:.2f} ms",
        f"{best} {late(best):.2f}x" if best else "-",
        f"{late(figures.us):.2f}x the median",
        late(figures.us) <= 2,
    )


# ---- the other rows ----


def drafts(prompts: tuple[str, ...], least: float) -> Judge:
    """Each of these prompts so many times as fast as without guesses; no prompts are the others."""

    def judge(figures: Figures) -> Verdict | None:
        found = figures.row("drafts")
        if found is None:
            return None
        kind = found["repeating"] if prompts else found["others"]
        rows = {name: row for name, row in kind.items() if not prompts or name in prompts}
        ratios = [row["ratio"] for row in rows.values()]
        middle = table.number(median(row["drafting"] for row in rows.values()))
        each = ", ".join(f"{name} {row['ratio']:.2f}" for name, row in rows.items())
        return Verdict(
            f"{middle} tok/s", "-", f"{each}; median {median(ratios):.2f}x", min(ratios) >= least
        )

    return judge


def fastest_start(figures: Figures, key: str) -> str:
    """The peer that is first in a row of starts."""
    times = {name: row[key] for name, row in figures.rows["start"].items() if key in row}
    best = table.best_peer(times)
    return f"{best} {times[best]:.2f} s" if best else "-"


def warm_start(figures: Figures) -> Verdict | None:
    found = figures.row("start")
    if found is None:
        return None
    seconds = found["first_token_s"]
    peer = fastest_start(figures, "first_token_s")
    return Verdict(f"{seconds:.3f} s", peer, f"{seconds:.3f} s", seconds <= 0.15)


def cold_start(figures: Figures) -> Verdict | None:
    found = figures.row("start")
    if found is None or "cold_s" not in found:
        return None
    reading = found["touched_bytes"] / found["read_bytes_per_s"]
    speed = f"{found['touched_bytes'] / MB:.0f} MB at {found['read_bytes_per_s'] / 1e9:.2f} GB/s"
    return Verdict(
        f"{found['cold_s']:.2f} s",
        fastest_start(figures, "cold_s"),
        f"{found['cold_s'] / reading:.2f}x reading {speed}",
        found["cold_s"] <= 1.1 * reading,
    )


def private_memory(figures: Figures) -> Verdict | None:
    found = figures.row("start")
    if found is None:
        return None
    dirty, kv = found["private_dirty_bytes"], found["kv_bytes"]
    all_dirty = {name: row["private_dirty_bytes"] for name, row in figures.rows["start"].items()}
    best = table.best_peer(all_dirty)
    return Verdict(
        f"{dirty / MB:.1f} MB",
        f"{best} {all_dirty[best] / MB:.0f} MB" if best else "-",
        f"KV {kv / MB:.1f} + {(dirty - kv) / MB:.1f} MB",
        dirty <= kv + 32 * MB,
    )


def half_memory(figures: Figures) -> Verdict | None:
    found = figures.row("half")
    if found is None:
        return None
    if "killed" in found:
        return Verdict("killed", "-", "killed", False)
    reading = found["read_bytes_per_s"] / found["missing_bytes"]
    rows = figures.rows["half"].items()
    speeds = {name: row["tokens_per_s"] for name, row in rows if "killed" not in row}
    best = table.best_peer(speeds, max)
    share = found["tokens_per_s"] / reading
    return Verdict(
        f"{found['tokens_per_s']:.2f} tok/s",
        f"{best} {speeds[best]:.2f}" if best else "all killed",
        f"{100 * share:.0f} % of reading {found['missing_bytes'] / MB:.0f} MB a token",
        share >= 0.8,
    )


def shipped(figures: Figures) -> Verdict | None:
    found = figures.rows.get("shipped", {}).get("ondevice")
    if found is None:
        return None
    seconds, tokens = median(found["first_token_s"]), median(found["prompt_tokens"])
    speeds = figures.series("smollm2", names.PREFILL)
    best = table.fastest(speeds)
    peer = f"{best} computes them in {tokens / median(speeds[best]):.2f} s" if best else "-"
    reused = median(found["reused_tokens"])
    return Verdict(
        f"{1e3 * seconds:.1f} ms", peer, f"{reused} of {tokens} tokens shipped", seconds <= 0.03
    )


def build(key: str, most: float, unit: str, scale: float) -> Judge:
    """A figure of the build of a model that was not built before."""

    def judge(figures: Figures) -> Verdict | None:
        found = figures.row("build")
        if found is None or key not in found:
            return None
        built = {name: row[key] for name, row in figures.rows["build"].items() if key in row}
        best = table.best_peer(built)
        value = found[key] / scale
        return Verdict(
            f"{value:.3g} {unit}",
            f"{best} {built[best] / scale:.3g}" if best else "-",
            f"{value:.3g} {unit}",
            value <= most,
        )

    return judge


def quality(figures: Figures) -> Verdict | None:
    found = figures.perplexity
    competing = {name: row["perplexity"] for name, row in found.items() if name not in names.SCORED}
    best = table.best_peer(competing)
    if figures.us not in found or best is None:
        return None
    losses = (found[name]["window_losses"] for name in (figures.us, best))
    ratio, error = compared(*losses)
    return Verdict(
        f"{found[figures.us]['perplexity']:.3f}",
        f"{best} {competing[best]:.3f}",
        f"{ratio:.4f}x +- {error:.4f}",
        ratio <= 1,
    )


REWRITING, JSON_EDITING = ("rewrite", "copy"), ("json", "json field")
BEST = ">= {}x the best peer"
GOALS = [
    Goal("prefill 512, 1.1b", BEST.format(1.3), faster("1.1b", names.PREFILL, 1.3)),
    Goal("prefill 512, 160m", BEST.format(1.3), faster("160m", names.PREFILL, 1.3)),
    Goal("prefill 512, 15m", BEST.format(1.3), faster("15m", names.PREFILL, 1.3)),
    Goal("prefill 512, smollm2", BEST.format(1.3), faster("smollm2", names.PREFILL, 1.3)),
    Goal("decode, smollm2", BEST.format(1.6), faster("smollm2", names.DECODE, 1.6)),
    Goal(
        "decode, 1.1b", ">= 1.15x llama.cpp or >= 92 % of DRAM",
        either(faster("1.1b", names.DECODE, 1.15, LLAMA), "1.1b", names.DECODE, 92),
    ),
    Goal(
        "decode, 160m", ">= 1.15x the best peer or >= 95 % of DRAM",
        either(faster("160m", names.DECODE, 1.15), "160m", names.DECODE, 95),
    ),
    Goal("decode, 15m", BEST.format(2), faster("15m", names.DECODE, 2)),
    Goal("decode, 1.1b, 1 thread", ">= 1.5x llama.cpp",
         faster("1.1b", names.SINGLE, 1.5, LLAMA)),
    Goal("CPU time per token, 1.1b", "<= 0.8x llama.cpp", cheaper("1.1b", 0.8)),
    Goal("CPU time per token, smollm2", "<= 0.8x llama.cpp", cheaper("smollm2", 0.8)),
    Goal("decode, 1.1b, at depth 2048", "loses <= 12 %", depth),
    Goal("its int8 KV against f16", "not slower", int8_kv),
    Goal("rewriting with guesses", ">= 1.8x plain", drafts(REWRITING, 1.8)),
    Goal("JSON editing with guesses", ">= 1.8x plain", drafts(JSON_EDITING, 1.8)),
    Goal("other prompts with guesses", ">= 0.97x plain", drafts((), 0.97)),
    Goal("first token, 1.1b, warm", "<= 0.15 s from exec", warm_start),
    Goal("first token, 1.1b, cold", "<= 1.1x reading what is touched", cold_start),
    Goal("first token, shipped prompt", "<= 30 ms, smollm2", shipped),
    Goal("private dirty memory, 1.1b", "<= KV + 32 MB", private_memory),
    Goal("half memory, 1.1b", ">= 80 % of reading what is missing", half_memory),
    Goal("prefill, one core busy", "keeps >= 60 %", busy(names.PREFILL, names.BUSY_PREFILL)),
    Goal("decode, one core busy", "keeps >= 60 %", busy(names.DECODE, names.BUSY_DECODE)),
    Goal("token gaps, one core busy", "p95 <= 2x the median", busy_gaps),
    Goal("build of 1.1b: time", "<= 15 s", build("seconds", 15, "s", 1)),
    Goal("build of 1.1b: memory", "<= 600 MB", build("peak_rss_bytes", 600, "MB", MB)),
    Goal("build of 1.1b: code", "<= 3 s", build("code_s", 3, "s", 1)),
    Goal("perplexity, smollm2", "<= the best peer's", quality),
]  # fmt: skip


def judged(figures: Figures) -> Iterator[tuple[Goal, Verdict]]:
    """Every goal that the run has the figures of."""
    for goal in GOALS:
        verdict = goal.judge(figures)
        if verdict is not None:
            yield goal, verdict


def goal_rows(figures: Figures) -> list[list[str]]:
    """work, what must hold, ours, best peer, measured, whether it is reached."""
    return [
        [goal.work, goal.must, v.ours, v.peer, v.measured, "yes" if v.reached else "no"]
        for goal, v in judged(figures)
    ]
