"""What each launch is in the phases of the steps that run it, for as few launches as possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ondevice.dims import Extent
from ondevice.graph.graph import Choice
from ondevice.passes.phases import Phase, Run
from ondevice.passes.tasks import Regime, Task

ALIGN_BYTES = 64  # of what a worker computes for itself


@dataclass(frozen=True)
class Role:
    """See `Launch`; `chunk` is that of its chain, and `own` says where a worker has values."""

    barrier: bool
    chained: bool = False
    each: bool = False
    chunk: int = 0  # 0: its own
    own: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Placed:
    """A choice of a node where it has one role."""

    choice: Choice
    regime: Regime
    role: Role


def assign_roles(
    runs: Sequence[Run], sizes: Mapping[str, Extent]
) -> tuple[dict[str, list[Placed]], int]:
    """The roles of each node, and how much memory of its own a worker needs, in bytes."""
    placed: dict[str, list[Placed]] = {}
    worker_bytes = 0
    for number, run in enumerate(runs):
        placed |= {node.output.name: [] for node in run.nodes}
        most = _largest(run, sizes)
        for regime, phases in run.found:
            for i, phase in enumerate(phases):
                own, end = _own_memory(phase, most)
                worker_bytes = max(worker_bytes, end)
                for task, role in _roles(phase, own, barrier=i > 0 or number > 0):
                    placed[task.output].append(Placed(task.choice, _both(task, regime), role))
    return {name: _merged(found) for name, found in placed.items()}, worker_bytes


def _largest(run: Run, sizes: Mapping[str, Extent]) -> dict[str, int]:
    """Bytes of the values that a worker has for itself, in the largest step where it does."""
    most: dict[str, int] = {}
    for regime, phases in run.found:
        for task in (t for phase in phases for chain in phase if chain.each for t in chain.tasks):
            size = regime.most(sizes[task.output])
            assert size is not None  # a launch of one claim has a bound
            most[task.output] = max(size, most.get(task.output, 0))
    return most


def _own_memory(phase: Phase, sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of what each worker computes for itself, one behind the other, and their end."""
    own, end = {}, 0
    for task in (task for chain in phase if chain.each for task in chain.tasks):
        own[task.output] = end
        end += -(-sizes[task.output] // ALIGN_BYTES) * ALIGN_BYTES
    return own, end


def _roles(phase: Phase, own: Mapping[str, int], *, barrier: bool) -> Iterator[tuple[Task, Role]]:
    for chain in phase:
        for i, task in enumerate(chain.tasks):
            names = dict.fromkeys((*task.node.reads(), task.output))
            role = Role(
                barrier=barrier,
                chained=i > 0 and not chain.each,
                each=chain.each,
                chunk=chain.chunk if i == 0 and len(chain.tasks) > 1 else 0,
                own=tuple((name, own[name]) for name in names if name in own),
            )
            yield task, role
            barrier = False


def _both(task: Task, regime: Regime) -> Regime:
    choice = task.choice
    rows = max(choice.min_rows, regime.rows[0]), min(choice.max_rows, regime.rows[1])
    spans = max(choice.min_spans, regime.spans[0]), min(choice.max_spans, regime.spans[1])
    return replace(regime, rows=rows, spans=spans)


def _merged(found: Sequence[Placed]) -> list[Placed]:
    """Ranges that lie side by side and have the same role as one: of rows first, then of spans."""
    by_rows = _joined(sorted(found, key=lambda p: (p.regime.spans, p.regime.rows)), "rows")
    return _joined(sorted(by_rows, key=lambda p: (p.regime.rows, p.regime.spans)), "spans")


def _joined(found: Sequence[Placed], axis: str) -> list[Placed]:
    joined: list[Placed] = []
    for one in found:
        if joined and (whole := _join(joined[-1], one, axis)):
            joined[-1] = whole
        else:
            joined.append(one)
    return joined


def _join(a: Placed, b: Placed, axis: str) -> Placed | None:
    """Both as one, if they differ in their range along `axis` only and lie side by side there."""
    (start, end), (begin, stop) = getattr(a.regime, axis), getattr(b.regime, axis)
    if axis == "rows":
        regime = replace(a.regime, rows=(start, stop))
        other = replace(b.regime, rows=(start, stop))
    else:
        regime = replace(a.regime, spans=(start, stop))
        other = replace(b.regime, spans=(start, stop))
    if end + 1 != begin or replace(b, regime=other) != replace(a, regime=regime):
        return None
    return replace(a, regime=regime)
