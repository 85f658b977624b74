"""A profile for people: tables as text, and a step as a Chrome trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.gate.profile import LaunchRow, Phase, Report

TITLES = (
    "runs", "us", "%", "wait us", "MB", "GB/s", "% read", "Gop/s", "% int8",
)  # fmt: skip


def print_report(report: Report) -> str:
    """Each phase by operation and by kernel; all figures are per step."""
    ceilings = report.ceilings
    parts = [
        f"{report.name}, {report.threads} threads, {report.variant}: at most "
        f"{ceilings['dram_gb_per_s']:.1f} GB/s read, {ceilings['cached_gb_per_s']:.1f} GB/s where "
        f"it fits the last cache, {report.peak_gop_per_s:,.0f} Gop/s int8"
    ]
    for phase in report.phases:
        parts.append(_heading(phase))
        parts.append(_table("operation", report, phase, lambda row: row.op))
        parts.append(_table("kernel", report, phase, lambda row: row.kernel))
    return "\n\n".join(parts)


def _heading(phase: Phase) -> str:
    steps = len(phase.steps)
    weights, kv = (
        sum(getattr(row, name) for row in phase.rows) / phase.tokens / 1e6
        for name in ("weight_bytes", "kv_bytes")
    )
    return (
        f"{phase.name}: {phase.tokens} tokens in {steps} steps of {phase.wall_ns / steps / 1e6:.3f}"
        f" ms, {phase.tokens / phase.wall_ns * 1e9:,.1f} tokens/s\n"
        f"{phase.barriers_per_step} barriers per step, {phase.barriers_per_layer:.1f} per layer; "
        f"{weights:.3f} MB of weights and {kv:.3f} MB of KV per token"
    )


@dataclass(frozen=True)
class _Sum:
    """What launches of one name take together, over a phase."""

    runs: int
    busy_ns: float
    wait_ns: float
    bytes: int
    operations: int
    int8_operations: int


def _sum(rows: Sequence[LaunchRow]) -> _Sum:
    return _Sum(
        sum(row.runs for row in rows),
        sum(row.busy_ns for row in rows),
        sum(row.wait_ns for row in rows),
        sum(row.weight_bytes + row.kv_bytes for row in rows),
        sum(row.operations for row in rows),
        sum(row.operations for row in rows if row.integer),
    )


def _table(title: str, report: Report, phase: Phase, key: Callable[[LaunchRow], str]) -> str:
    groups: dict[str, list[LaunchRow]] = {}
    for row in phase.rows:
        groups.setdefault(key(row), []).append(row)
    lines: list[tuple[str, ...]] = [(title, *TITLES)]
    lines += [_line(name, _sum(rows), report, phase) for name, rows in groups.items()]
    lines.append(_line("all launches", _sum(phase.rows), report, phase))
    outside = _Sum(0, phase.outside_ns, 0, 0, 0, 0)
    lines.append(_line("outside launches", outside, report, phase))
    if any(row.predicted_ns for row in phase.rows):
        predicted = [_predicted(rows, phase) for rows in (*groups.values(), phase.rows)]
        cells = [("predicted us", "us / predicted"), *predicted, ("", "")]
        lines = [(*line, *more) for line, more in zip(lines, cells, strict=True)]
    return _aligned(lines)


def _predicted(rows: Sequence[LaunchRow], phase: Phase) -> tuple[str, str]:
    """What the build predicted for these launches in a step, and how far it is from the truth."""
    known = [row for row in rows if row.predicted_ns]
    total = sum(row.predicted_ns for row in known)
    if not total:
        return "", ""
    busy = sum(row.busy_ns for row in known)
    return f"{total / len(phase.steps) / 1e3:.1f}", f"{busy / total:.2f}"


def _line(name: str, total: _Sum, report: Report, phase: Phase) -> tuple[str, ...]:
    steps, busy = len(phase.steps), total.busy_ns
    cells = [
        name,
        f"{total.runs / steps:g}" if total.runs else "",
        f"{busy / steps / 1e3:.1f}",
        f"{100 * busy / phase.wall_ns:.1f}",
        f"{total.wait_ns / steps / 1e3:.1f}",
    ]
    cells.append(f"{total.bytes / steps / 1e6:.3f}" if total.bytes else "")
    cells += _rate(total.bytes, total.bytes, busy, report.ceilings["dram_gb_per_s"])
    cells += _rate(total.operations, total.int8_operations, busy, report.peak_gop_per_s)
    return tuple(cells)


def _rate(amount: int, counted: int, busy_ns: float, ceiling: float) -> tuple[str, str]:
    """`amount` per ns, which is giga per s, and `counted` in percent of the ceiling."""
    if amount == 0 or busy_ns <= 0:
        return "", ""
    percent = f"{100 * counted / busy_ns / ceiling:.0f}" if counted and ceiling else ""
    return f"{amount / busy_ns:.1f}", percent


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(cells)]
        texts.append(f"| {' | '.join(padded)} |")
    rule = [("-" * w) if i == 0 else f"{'-' * (w - 1)}:" for i, w in enumerate(widths)]
    texts.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(texts)


def chrome_trace(report: Report) -> dict[str, Any]:
    """The last step of each phase, a process each, in the Trace Event Format.

    chrome://tracing and Perfetto open it.
    """
    events: list[dict[str, Any]] = []
    for process, phase in enumerate(report.phases):
        events.append(_named("process_name", process, 0, f"{report.name} {phase.name}"))
        rows = {row.launch: row for row in phase.rows}
        start = int(phase.trace["arrived_ns"].min()) if len(phase.trace) else 0
        for worker in sorted(set(phase.trace["worker"].tolist())):
            events.append(_named("thread_name", process, worker, f"worker {worker}"))
        for run in phase.trace:
            row, place = rows[int(run["launch"])], {"pid": process, "tid": int(run["worker"])}
            arrived, begin, end = (int(run[f"{n}_ns"]) - start for n in ("arrived", "begin", "end"))
            if begin > arrived:
                events.append(_span("wait", "barrier", place, arrived, begin, {}))
            about = {"kernel": row.symbol, "chunks": int(run["chunks"]), "launch": row.launch}
            events.append(_span(row.source, row.kernel, place, begin, end, about))
    return {"displayTimeUnit": "ns", "traceEvents": events}


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _span(
    name: str, category: str, place: dict[str, int], begin: int, end: int, about: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": begin / 1e3, "dur": (end - begin) / 1e3}
    return {"name": name, "cat": category, "ph": "X", **place, **times, "args": about}
