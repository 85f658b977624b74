"""How often the pieces of a kernel run in a launch, and what of its buffers passes a cache.

Loops whose control does not depend on their own variable are looked at once; of other long loops
the first, middle and last round stand for all. A cache is taken to hold what the outermost loop
touches whose data fits it, so what crosses it is that data each time the loop runs (the layer
condition of Stengel, Treibig, Hager and Wellein, ICS 2015).
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ondevice.lang import check
from ondevice.lang import kernel_ir as ir
from ondevice.lang.evaluate import evaluate
from ondevice.lang.work import Access, Branch, Loop, Piece, deciding, walk_pieces

Value = int | float
# The element of a buffer at some indices, as far as control depends on it.
Loaded = Mapping[str, Callable[[tuple[Value, ...]], Value]]
LINE_BYTES = 64
SAMPLED = 4  # rounds of a loop up to which each is looked at
Range = tuple[int, int]  # both ends included
Box = tuple[Range, ...]

_FOLDS: dict[str, Callable[[Value, Value], Value]] = {
    **dict((*check.ARITHMETIC.values(), *check.COMPARISON.values())),
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
}


@dataclass(frozen=True)
class Launched:
    """A kernel with its scalars, and what it will find in the buffers that steer it."""

    kernel: ir.Kernel
    piece: Piece
    scalars: Mapping[str, int]
    loaded: Loaded = field(default_factory=dict)
    _crossings: dict[int, dict[str, int]] = field(default_factory=dict)
    _touched: dict[object, dict[str, Box]] = field(default_factory=dict)

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(max(0, evaluate(e, self.scalars)) for e in self.kernel.extents)

    @cached_property
    def executions(self) -> dict[int, float]:
        """By id of a piece, how often it runs in all tasks together."""
        walk = _Executions(self.loaded, deciding(self.piece))
        tasks = list(zip(self.kernel.tasks, self.extents, strict=True))
        walk.tasks(self.piece, tasks, dict(self.scalars), 1.0)
        return dict(walk.runs)

    def crossing(self, capacity: int) -> dict[str, int]:
        """Bytes of each buffer that cross a cache of so many bytes while all tasks run in order."""
        if capacity not in self._crossings:
            crossing = _Crossing(self, capacity)
            most = crossing.accessed(self.executions)
            found = crossing.launch().items()
            self._crossings[capacity] = {name: min(size, most[name]) for name, size in found}
        return self._crossings[capacity]

    @cached_property
    def prefetched(self) -> dict[str, int]:
        """Bytes of each buffer that the kernel fetches ahead."""
        total: Counter[str] = Counter()
        for piece in walk_pieces(self.piece):
            for name, lines in piece.prefetches.items():
                total[name] += LINE_BYTES * round(lines * self.executions.get(id(piece), 0))
        return dict(total)


class _Executions:
    def __init__(self, loaded: Loaded, steering: frozenset[str]) -> None:
        self.loaded = loaded
        self.steering = steering
        self.runs: Counter[int] = Counter()

    def tasks(
        self, piece: Piece, left: list[tuple[str, int]], known: dict[str, Value], weight: float
    ) -> None:
        if not left:
            self.run(piece, dict(known), weight)
            return
        (name, extent), *inner = left
        for value, share in self.sampled(name, 0, extent, 1, piece):
            self.tasks(piece, inner, {**known, name: value}, weight * share)

    def run(self, piece: Piece, known: dict[str, Value], weight: float) -> None:
        self.runs[id(piece)] += weight  # type: ignore[assignment]
        for part in piece.inner:
            match part:
                case ir.Assign(name, value):
                    if name in self.steering:
                        self.assign(name, value, known)
                case Loop(statement, body):
                    self.loop(statement, body, known, weight)
                case Branch(condition, then, orelse):
                    held = value_of(condition, known, self.loaded)
                    if held is None:  # nobody knows: each side half of the time
                        self.run(then, dict(known), weight / 2)
                        self.run(orelse, known, weight / 2)
                    else:
                        self.run(then if held else orelse, known, weight)

    def assign(self, name: str, value: ir.Expr, known: dict[str, Value]) -> None:
        found = value_of(value, known, self.loaded)
        if found is None:
            known.pop(name, None)
        else:
            known[name] = found

    def loop(self, loop: ir.For, body: Piece, known: dict[str, Value], weight: float) -> None:
        start = value_of(loop.start, known, self.loaded)
        stop = value_of(loop.stop, known, self.loaded)
        if start is None or stop is None:
            start, stop = 0, loop.step
        for value, share in self.sampled(loop.name, int(start), int(stop), loop.step, body):
            known[loop.name] = value
            self.run(body, known, weight * share)

    def sampled(
        self, name: str, start: int, stop: int, step: int, body: Piece
    ) -> Iterator[tuple[int, int]]:
        """Rounds to look at, and for how many each stands."""
        values = range(start, stop, step)
        if not values:
            return
        if name not in self.steering:
            yield values[0], len(values)
        elif len(values) <= SAMPLED:
            yield from ((value, 1) for value in values)
        else:
            yield values[0], 1
            yield values[len(values) // 2], len(values) - 2
            yield values[-1], 1


def value_of(expr: ir.Expr, known: Mapping[str, Value], loaded: Loaded) -> Value | None:
    """The value of a scalar expression, None where it is not known."""
    match expr:
        case ir.Const(_, value):
            return value
        case ir.Var(_, name):
            return known.get(name)
        case ir.Load(_, buffer, indices):
            at = [value_of(i, known, loaded) for i in indices]
            given = tuple(i for i in at if i is not None)
            return loaded[buffer](given) if buffer in loaded and len(given) == len(at) else None
        case ir.Op(_, name, args):
            values = [value_of(a, known, loaded) for a in args]
            if name == "select" and values[0] is not None:
                return values[1] if values[0] else values[2]
            if any(v is None for v in values):
                return None
            if name in ("cast", "vec"):
                return values[0]
            if name == "not":
                return not values[0]
            if name in _FOLDS and len(values) == 2:
                return _FOLDS[name](values[0], values[1])  # type: ignore[arg-type]
    return None


class _Crossing:
    def __init__(self, launched: Launched, capacity: int) -> None:
        self.capacity = capacity
        self.launched = launched
        kernel = launched.kernel
        self.buffers = {b.name: b for b in (*kernel.buffers, *kernel.scratch)}
        self.dims = {
            name: tuple(launched.scalars[d] if isinstance(d, str) else d for d in buffer.dims)
            for name, buffer in self.buffers.items()
        }

    def launch(self) -> dict[str, int]:
        known: dict[str, Range] = {n: (v, v) for n, v in self.launched.scalars.items()}
        tasks = zip(self.launched.kernel.tasks, self.launched.extents, strict=True)
        return self.tasks(self.launched.piece, list(tasks), known)

    def accessed(self, executions: Mapping[int, float]) -> dict[str, int]:
        """Bytes that all loads and stores of each buffer have."""
        total: Counter[str] = Counter()
        for piece in walk_pieces(self.launched.piece):
            runs = executions.get(id(piece), 0)
            for access in piece.accesses:
                name, at = access.buffer, access.at
                elements = math.prod(high - low + 1 for _, low, high in at)
                total[name] += math.ceil(runs * elements) * self.buffers[name].dtype.bytes
        return total

    def tasks(
        self, piece: Piece, left: list[tuple[str, int]], known: dict[str, Range]
    ) -> dict[str, int]:
        if not left:
            return self.piece(piece, known)
        (name, extent), *inner = left

        def touched(at: Range) -> dict[str, Box]:
            all_inner = {n: (0, e - 1) for n, e in inner}
            return self.touched(piece, {**known, name: at, **all_inner})

        def once(at: int) -> dict[str, int]:
            return self.tasks(piece, inner, {**known, name: (at, at)})

        return self.repeated(range(extent), touched, once)

    def piece(self, piece: Piece, known: dict[str, Range]) -> dict[str, int]:
        """Bytes of one run of a piece."""
        boxes = self.touched(piece, known)
        if self.fits(boxes):
            return self.sizes(boxes)
        total: Counter[str] = Counter()
        own: dict[str, Box] = {}
        known = dict(known)
        self.note(piece, known, own)
        total.update(self.sizes(own))
        for part in piece.inner:
            if isinstance(part, ir.Assign):
                self.assign(part, known)
            elif isinstance(part, Loop):
                total.update(self.loop(part, known))
            else:
                for side in self.sides(part, known):
                    total.update(self.piece(side, known))
        return dict(total)

    def loop(self, loop: Loop, known: dict[str, Range]) -> dict[str, int]:
        name = loop.statement.name
        values = self.values(loop.statement, known)

        def touched(at: Range) -> dict[str, Box]:
            return self.touched(loop.body, {**known, name: at})

        def once(at: int) -> dict[str, int]:
            return self.piece(loop.body, {**known, name: (at, at)})

        return self.repeated(values, touched, once)

    def repeated(
        self,
        values: range,
        touched: Callable[[Range], dict[str, Box]],
        once: Callable[[int], dict[str, int]],
    ) -> dict[str, int]:
        """Bytes of a loop, given what it touches in some rounds and the bytes of one."""
        if not values:
            return {}
        boxes = touched((values[0], values[-1]))
        if self.fits(boxes):
            return self.sizes(boxes)
        middle = values[(len(values) - 1) // 2]
        here, last = touched((middle, middle)), touched((values[-1], values[-1]))
        each = self.sizes(here)
        # All rounds count as the middle one, but the last by what it touches: it may fall short.
        rest = sum(self.sizes(last).values()) / max(1, sum(each.values()))
        rounds = len(values) - 1 + min(1.0, rest)
        if not self.fits(here):
            return {name: math.ceil(size * rounds) for name, size in once(middle).items()}
        # What the next round touches too is still there.
        near = touched((middle, min(middle + values.step, values[-1])))
        two, whole = self.sizes(near), self.sizes(boxes)
        return {
            name: min(whole[name], math.ceil(size + (rounds - 1) * (two[name] - size)))
            if two[name] < 2 * size
            else math.ceil(size * rounds)
            for name, size in each.items()
        }

    def touched(self, piece: Piece, known: dict[str, Range]) -> dict[str, Box]:
        key = id(piece), frozenset(known.items())
        if key not in self.launched._touched:
            boxes: dict[str, Box] = {}
            self.walk(piece, dict(known), boxes)
            self.launched._touched[key] = boxes
        return self.launched._touched[key]

    def walk(self, piece: Piece, known: dict[str, Range], boxes: dict[str, Box]) -> None:
        self.note(piece, known, boxes)
        for part in piece.inner:
            if isinstance(part, Loop):
                values = self.values(part.statement, known)
                if values:
                    inside = {**known, part.statement.name: (values[0], values[-1])}
                    self.walk(part.body, inside, boxes)
            elif isinstance(part, Branch):
                for side in self.sides(part, known):
                    self.walk(side, dict(known), boxes)

    def sides(self, branch: Branch, known: Mapping[str, Range]) -> tuple[Piece, ...]:
        """Those that may run."""
        exact: dict[str, Value] = {name: a for name, (a, b) in known.items() if a == b}
        held = value_of(branch.condition, exact, self.launched.loaded)
        if held is None:
            return branch.then, branch.orelse
        return (branch.then if held else branch.orelse,)

    def note(self, piece: Piece, known: dict[str, Range], boxes: dict[str, Box]) -> None:
        """Add what the statements of a piece touch, those of inner ones left out."""
        for part in piece.inner:
            if isinstance(part, ir.Assign):
                self.assign(part, known)
        for access in piece.accesses:
            box = self.box(access, known)
            before = boxes.get(access.buffer, box)
            pairs = zip(before, box, strict=True)
            boxes[access.buffer] = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in pairs)

    def box(self, access: Access, known: Mapping[str, Range]) -> Box:
        """The elements of an access, whole dims where nothing is known."""
        box = []
        for (terms, low, high), size in zip(access.at, self.dims[access.buffer], strict=True):
            ends = [end for term in terms if (end := self.range(term, known)) is not None]
            first, last = low + sum(a for a, _ in ends), high + sum(b for _, b in ends)
            if len(ends) < len(terms):
                first, last = 0, size - 1
            box.append((max(0, min(first, size - 1)), max(0, min(last, size - 1))))
        return tuple(box)

    def assign(self, part: ir.Assign, known: dict[str, Range]) -> None:
        found = self.range(part.value, known)
        if found is None:
            known.pop(part.name, None)
        else:
            known[part.name] = found

    def values(self, loop: ir.For, known: dict[str, Range]) -> range:
        """Rounds of a loop as long as it can be."""
        start, stop = self.range(loop.start, known), self.range(loop.stop, known)
        if start is None or stop is None:
            return range(0)
        return range(start[0], stop[1], loop.step)

    def range(self, expr: ir.Expr, known: Mapping[str, Range]) -> Range | None:
        match expr:
            case ir.Const(_, value):
                return int(value), int(value)
            case ir.Var(_, name):
                return known.get(name)
            case ir.Load():
                ends = [
                    value_of(expr, {n: end[side] for n, end in known.items()}, self.launched.loaded)
                    for side in (0, 1)
                ]
                found = [int(end) for end in ends if end is not None]
                return (found[0], found[1]) if len(found) == 2 else None
            case ir.Op(_, "cast", (inner,)):
                return self.range(inner, known)
            case ir.Op(_, name, args):
                parts = [self.range(arg, known) for arg in args[-2:]]
                if len(parts) == 2 and parts[0] is not None and parts[1] is not None:
                    return _combined(name, parts[0], parts[1])
        return None

    def fits(self, boxes: Mapping[str, Box]) -> bool:
        return sum(self.sizes(boxes).values()) <= self.capacity

    def sizes(self, boxes: Mapping[str, Box]) -> dict[str, int]:
        return {
            name: math.prod(b - a + 1 for a, b in box) * self.buffers[name].dtype.bytes
            for name, box in boxes.items()
        }


def _combined(name: str, a: Range, b: Range) -> Range | None:
    if name == "select":
        return min(a[0], b[0]), max(a[1], b[1])
    if name == "mod" and b[0] == b[1] > 0:
        same = a[0] // b[0] == a[1] // b[0]
        return (a[0] % b[0], a[1] % b[0]) if same else (0, b[0] - 1)
    fold = _FOLDS.get(name)
    if fold is None or (name == "floordiv" and b[0] <= 0):
        return None
    ends = [fold(x, y) for x in a for y in b]
    return int(min(ends)), int(max(ends))
