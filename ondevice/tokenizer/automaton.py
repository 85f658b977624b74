"""From the tree of a regular expression to a table that finds what a backtracking engine finds.

An engine that backtracks takes the first alternative that works. The automaton keeps the
alternatives still alive in that order (a state is an ordered list of places in the pattern) and
drops everything behind the first that has matched; the last match seen before the state dies is the
engine's answer. One pass, no backtracking, no state at run time but a number. The look at the next
character makes matches known one character late, hence they are marked on the transitions.
(R. Cox, "Regular Expression Matching in the Wild", 2010.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ondevice.tokenizer.charsets import Classes, partition, probe_pattern
from ondevice.tokenizer.regex import Chars, Choice, Look, Node, RegexError, Repeat, Sequence

MATCH = 0x8000  # on a transition: what was read before this character is a match
DEAD, START = 0, 1
_MOST_STATES = 4096


@dataclass(frozen=True)
class Automaton:
    """`transitions[state, class]` = next state, with MATCH; class `classes.count` is the end."""

    classes: Classes
    transitions: NDArray[np.uint16]

    def find(self, text: str, start: int = 0) -> int:
        """End of the match that begins at `start`, or -1: the reference of the C code."""
        state, end = START, -1
        for place in range(start, len(text) + 1):
            last = place == len(text)
            step = int(
                self.transitions[
                    state, self.classes.count if last else self.classes.of[ord(text[place])]
                ]
            )
            end = place if step & MATCH else end
            state = step & ~MATCH
            if state == DEAD:
                break
        return end


@dataclass
class _Places:
    """The places of a pattern: what may be read there and where it leads, by number."""

    read: list[int | None] = field(default_factory=list)  # a set, to read one of it
    look: list[tuple[int, bool] | None] = field(default_factory=list)
    then: list[tuple[int, ...]] = field(default_factory=list)  # in order of preference
    sets: dict[Chars, int] = field(default_factory=dict)

    def add(
        self, then: tuple[int, ...], read: int | None = None, look: tuple[int, bool] | None = None
    ) -> int:
        self.read.append(read)
        self.look.append(look)
        self.then.append(then)
        return len(self.then) - 1

    def of_set(self, chars: Chars) -> int:
        return self.sets.setdefault(chars, len(self.sets))

    def place(self, node: Node, then: int) -> int:
        """Lay out `node` so that it goes on at `then`; returns its first place."""
        match node:
            case Chars():
                return self.add((then,), read=self.of_set(node))
            case Look():
                return self.add((then,), look=(self.of_set(node.chars), node.negated))
            case Sequence():
                for part in reversed(node.parts):
                    then = self.place(part, then)
                return then
            case Choice():
                return self.add(tuple(self.place(option, then) for option in node.options))
            case Repeat():
                return self.repeat(node, then)

    def repeat(self, node: Repeat, then: int) -> int:
        if node.most is None:
            loop = self.add(())
            body = self.place(node.part, loop)
            self.then[loop] = (then, body) if node.lazy else (body, then)
            then = loop
        else:
            end = then
            for _ in range(node.most - node.least):
                body = self.place(node.part, then)
                then = self.add((end, body) if node.lazy else (body, end))
        for _ in range(node.least):
            then = self.place(node.part, then)
        return then


_ACCEPT = 0
State = tuple[int, ...]


def build_automaton(node: Node) -> Automaton:
    """The automaton of a pattern. Raises RegexError where it matches nothing at all, or is huge."""
    places = _Places()
    accept = places.add(())
    assert accept == _ACCEPT
    first = places.place(node, accept)
    try:
        classes = partition([probe_pattern(c.pattern, c.folded) for c in places.sets])
    except ValueError as error:
        raise RegexError(f"a pre-tokenizer's pattern has {error}") from error
    numbers: dict[State, int] = {(): DEAD, _expand(places, (first,)): START}
    rows: list[list[int]] = [[DEAD] * (classes.count + 1)]
    for state in _growing(numbers):
        row = []
        for read in range(classes.count + 1):
            matched, after = _step(places, classes, state, read)
            number = numbers.setdefault(after, len(numbers))
            row.append(number | (MATCH if matched else 0))
        rows.append(row)
        if len(rows) > _MOST_STATES:
            raise RegexError(f"a pre-tokenizer's pattern needs more than {_MOST_STATES} states")
    if any(step & MATCH for step in rows[START]):
        raise RegexError("a pre-tokenizer's pattern matches the empty text")
    return Automaton(classes, np.array(rows, np.uint16))


def _growing(numbers: dict[State, int]) -> Iterator[State]:
    """The states from START on, also those that are added meanwhile."""
    done = START
    while done < len(numbers):
        yield list(numbers)[done]
        done += 1


def _expand(places: _Places, starts: State) -> State:
    """All places reached without reading or looking, in order of preference."""
    seen: dict[int, None] = {}
    stack = list(reversed(starts))
    while stack:
        place = stack.pop()
        if place in seen:
            continue
        seen[place] = None
        if _passes(places, place):
            stack.extend(reversed(places.then[place]))
    return tuple(p for p in seen if p == _ACCEPT or not _passes(places, p))


def _passes(places: _Places, place: int) -> bool:
    """Whether one goes on from `place` without reading or looking."""
    return places.read[place] is None and places.look[place] is None


def _step(places: _Places, classes: Classes, state: State, read: int) -> tuple[bool, State]:
    """Whether the text before a character of class `read` is a match, and the state behind it."""
    reached: list[int] = []
    seen: set[int] = set()
    stack = list(reversed(state))
    while stack:
        place = stack.pop()
        if place in seen:
            continue
        seen.add(place)
        if place == _ACCEPT:
            return True, _expand(places, tuple(reached))
        look, chars = places.look[place], places.read[place]
        if look is not None:
            if (read in classes.members[look[0]]) != look[1]:
                stack.extend(reversed(_expand(places, places.then[place])))
        elif chars is not None and read in classes.members[chars]:
            reached.extend(places.then[place])
    return False, _expand(places, tuple(reached))
