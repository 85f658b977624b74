"""Which launches of a step may run side by side, and what has to wait for what.

Between two barriers lies a phase. Its launches are chains that do not touch what another chain of
the phase writes, so workers claim tasks of any of them in any order. The launches of a chain depend
on each other, but only task by task: who claims tasks of the first runs the same tasks of the
others at once, while the data is in its cache. A launch that is claimed in one piece, and small, is
instead computed by every worker for itself: the others would have to wait for it anyway.

All of this depends on how many tasks there are, so it is found for each range of rows and spans in
which every node has one kernel (after the rTasks of Rammer, OSDI 20, and the tile graphs of Welder,
OSDI 23).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ondevice.graph.graph import Graph, Node
from ondevice.graph.ops import OPS
from ondevice.lang.library import Types
from ondevice.passes.alignment import Alignment, Memory
from ondevice.passes.arena import arena_sizes
from ondevice.passes.instances import Instances
from ondevice.passes.tasks import Regime, Task, regimes

EACH_BYTES = 65536  # more than this, and computing it in every worker costs more than a barrier
MAX_CHAINED = 7  # launches behind the first of a chain: OD_MAX_CHAINED


@dataclass
class Chain:
    """Tasks that are claimed together, in order; `each`: computed by every worker for itself.

    As many are claimed at once as suits the one that moves the most bytes.
    """

    tasks: list[Task]
    each: bool = False

    @property
    def chunk(self) -> int:
        return max(self.tasks, key=lambda task: task.moved.total).chunk


Phase = list[Chain]


@dataclass
class Planner:
    """Finds the phases of some nodes in one regime."""

    instances: Instances
    alignment: Alignment
    regime: Regime
    arena: frozenset[str]  # values that only the step sees
    users: Mapping[str, list[Node]]
    refused: set[str] = field(default_factory=set)  # to be computed by every worker

    def phases(self, nodes: Sequence[Node]) -> list[Phase]:
        tasks = [task for task in map(self._task, nodes) if task is not None]
        found: list[Phase] = []
        at = 0
        while at < len(tasks):
            phase, taken = self._phase(tasks, at)
            late = self._read_later(phase)
            if late:  # the phase ended before the last reader of what each worker has for itself
                self.refused |= late
                continue
            found.append(phase)
            at += taken
        return found

    def _task(self, node: Node) -> Task | None:
        choices = [choice for choice in node.choices if self.regime.allows(choice)]
        if not choices:
            return None
        (choice,) = choices
        instances = self.instances.of(choice, node)
        memory = self.alignment.memory
        places = {name: memory(name, node) for name in (*node.reads(), node.output.name)}
        reads = frozenset(places[n] for n in node.reads() if places[n] is not None)
        return Task(
            self.regime,
            node,
            choice,
            instances,
            self.instances.extents(choice, node),
            self.instances.chunk(choice),
            self.instances.traffic(node, self.regime.step),
            reads,
            frozenset({places[node.output.name]}),
        )

    def _phase(self, tasks: Sequence[Task], at: int) -> tuple[Phase, int]:
        """The phase that starts with tasks[at], and how many tasks it has."""
        phase = [Chain([tasks[at]])]
        for count, task in enumerate(tasks[at + 1 :], 1):
            waits = [chain for chain in phase if _conflict(chain, task)]
            last = phase[-1]
            if waits[-1:] == [last] and not last.each and self._follows(last, task):
                waits.pop()
                chained = True
            else:
                chained = False
            if not all(self._for_each(chain, task) for chain in waits):
                return phase, count
            for chain in waits:
                chain.each = True
            if chained:
                last.tasks.append(task)
            else:
                phase.append(Chain([task]))
        return phase, len(tasks) - at

    def _follows(self, chain: Chain, task: Task) -> bool:
        """Whether each task needs of the chain only what the same task of it computes."""
        return len(chain.tasks) <= MAX_CHAINED and all(
            self.alignment.alike(before, task)
            and (not before.touches(task) or self.alignment.by_task(before, task))
            for before in chain.tasks
        )

    def _for_each(self, chain: Chain, task: Task) -> bool:
        """Whether every worker may compute the chain for itself, so that `task` need not wait."""
        if chain.each:
            return not task.writes & {place for one in chain.tasks for place in one.reads}
        return all(
            self._small(one, chain.chunk) and not task.writes & (one.reads | one.writes)
            for one in chain.tasks
        )

    def _small(self, task: Task, chunk: int) -> bool:
        """One claim of few bytes, mostly activations, whose result stays in the step."""
        most, moved = self.regime.most(*task.extents), task.moved
        if most is None or most > chunk:
            return False
        if moved.total > EACH_BYTES or moved.weights > moved.activations:
            return False
        return task.output in self.arena and task.output not in self.refused

    def _read_later(self, phase: Phase) -> set[str]:
        inside = {task.output for chain in phase for task in chain.tasks}
        return {
            task.output
            for chain in phase
            if chain.each
            for task in chain.tasks
            if any(self._runs(u) and u.output.name not in inside for u in self.users[task.output])
        }

    def _runs(self, node: Node) -> bool:
        return any(self.regime.allows(choice) for choice in node.choices)


def _conflict(chain: Chain, task: Task) -> bool:
    return any(before.touches(task) for before in chain.tasks)


@dataclass(frozen=True)
class Run:
    """Nodes in a row that all have `symbol` rows, and their phases in each regime."""

    nodes: tuple[Node, ...]
    found: tuple[tuple[Regime, tuple[Phase, ...]], ...]


def plan_phases(graph: Graph, instances: Instances, memory: Memory) -> tuple[Run, ...]:
    """The phases of a step of every size. Between two runs there is always a barrier."""
    users, arena = graph.users(), frozenset(arena_sizes(graph))
    alignment = Alignment(instances, memory)
    runs = []
    for symbol, group in groupby(graph.nodes, key=lambda node: row_symbol(node, instances.types)):
        nodes = tuple(group)
        found = []
        for regime in regimes(symbol, nodes):
            planner = Planner(instances, alignment, regime, arena, users)
            found.append((regime, tuple(planner.phases(nodes))))
        runs.append(Run(nodes, tuple(found)))
    return tuple(runs)


def row_symbol(node: Node, types: Types) -> str:
    """The symbol that the rows of a node's result, or of what it stores, are counted by."""
    rows = types[node.inputs[1] if OPS[node.op].state else node.output.name].shape[0]
    return rows.terms[0][0] if rows.terms else ""


def always_apart(runs: Sequence[Run]) -> set[str]:
    """Nodes before which every step has a barrier: between all that precede and all that follow."""
    names: set[str] = set()
    for run in runs:
        common = None
        for _, phases in run.found:
            starts = {phase[0].tasks[0].output for phase in phases}
            ran = {task.output for phase in phases for chain in phase for task in chain.tasks}
            apart, before_start = set(), True
            for node in reversed(run.nodes):
                if node.output.name in ran:
                    before_start = node.output.name in starts
                if before_start:
                    apart.add(node.output.name)
            common = apart if common is None else common & apart
        names |= common or set()
    return names
