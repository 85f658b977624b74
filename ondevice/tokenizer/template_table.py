"""The table of a chat template: what stands before each message, and how its content is trimmed.

This is also the reference of the C code that renders it (native/template.c).
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntFlag

ROLES = ("system", "user", "assistant", "tool")
START = "start"  # the role before the first message
DATE = "\uf8ff"  # around the strftime format of a date
# What strftime directives the runtime has.
DIRECTIVES = "aAbBdHjmMSyY%"


class Unplaceable(Exception):
    """The table has no place for a message; the text says why."""


class Strip(IntFlag):
    """White space removed from a content, as Python's str.strip does; or only its newlines."""

    LEFT = 1
    RIGHT = 2
    NEWLINES = 4

    @classmethod
    def all(cls) -> list[Strip]:
        sides = (cls(0), cls.LEFT | cls.RIGHT, cls.LEFT, cls.RIGHT)
        return [*sides, *(side | cls.NEWLINES for side in sides[1:])]

    def apply(self, text: str) -> str:
        chars = "\n" if Strip.NEWLINES in self else None
        text = text.lstrip(chars) if Strip.LEFT in self else text
        return text.rstrip(chars) if Strip.RIGHT in self else text


@dataclass(frozen=True)
class Place:
    """Where a message stands."""

    previous: str  # role before, or START
    role: str
    last: bool
    user_before: bool
    user_after: bool
    thinking: bool


@dataclass(frozen=True)
class Ending:
    """How a conversation ends."""

    role: str
    user: bool  # a user has spoken
    generate: bool
    thinking: bool


def places(roles: Sequence[str], thinking: bool) -> Iterator[Place]:
    """Where each message of a conversation stands."""
    for i, role in enumerate(roles):
        yield Place(
            previous=roles[i - 1] if i else START,
            role=role,
            last=i == len(roles) - 1,
            user_before="user" in roles[:i],
            user_after="user" in roles[i + 1 :],
            thinking=thinking,
        )


@dataclass(frozen=True)
class Row:
    """What a message looks like in its place.

    before: text before the content
    strip:  trimming of the content (None: not known yet)
    blank:  whether a content that is empty once trimmed has a place
    marker: text such as </think>: of a content that has it only what follows the last one is kept,
            trimmed as `after` says; `after` None: such a content has no place
    """

    before: str
    strip: Strip | None = None
    blank: bool = True
    marker: str = ""
    after: Strip | None = None

    def trim(self, content: str, role: str) -> str:
        """What the template makes of a content. Raises Unplaceable."""
        if self.marker and self.marker in content:
            if self.after is None:
                raise Unplaceable(f"a {role} message with {self.marker} has no place here")
            content = self.after.apply(content.rsplit(self.marker, 1)[1])
        content = (self.strip or Strip(0)).apply(content)
        if not self.blank and not content.strip():
            raise Unplaceable(f"an empty {role} message has no place here")
        return content


# (role, text) several times: contents that change each other's rendering when all of them occur.
Conflict = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    rows: Mapping[Place, Row]
    endings: Mapping[Ending, str]
    conflicts: tuple[Conflict, ...]

    def roles(self) -> set[str]:
        return {place.role for place in self.rows}

    def after_answer(self) -> tuple[str, ...]:
        """The texts that may follow an assistant's message, whatever comes next."""
        texts = {row.before for place, row in self.rows.items() if place.previous == "assistant"}
        texts |= {text for ending, text in self.endings.items() if ending.role == "assistant"}
        return tuple(sorted(texts))

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        generate: bool,
        thinking: bool,
        now: datetime,
    ) -> str:
        """The prompt of a conversation. Raises Unplaceable."""
        roles = [m["role"] for m in messages]
        self._check(messages)
        pieces = []
        for message, place in zip(messages, places(roles, thinking), strict=True):
            row = self.rows.get(place)
            if row is None:
                raise Unplaceable(f"a {place.role} message has no place after {place.previous}")
            pieces += [_dated(row.before, now), row.trim(message["content"], place.role)]
        ending = self.endings.get(Ending(roles[-1], "user" in roles, generate, thinking))
        if ending is None:
            raise Unplaceable(f"a conversation cannot end with a {roles[-1]} message")
        return "".join([*pieces, _dated(ending, now)])

    def _check(self, messages: Sequence[Mapping[str, str]]) -> None:
        if not messages:
            raise Unplaceable("a conversation needs a message")
        for conflict in self.conflicts:
            if all(
                any(m["role"] == role and text in m["content"] for m in messages)
                for role, text in conflict
            ):
                names = " and ".join(text for _, text in conflict)
                raise Unplaceable(f"{names} have no place in one conversation")


def _dated(text: str, now: datetime) -> str:
    parts = text.split(DATE)
    return "".join(now.strftime(part) if i % 2 else part for i, part in enumerate(parts))


def unknown_directives(text: str) -> list[str]:
    """strftime directives in the dates of `text` that the runtime does not have."""
    forms = text.split(DATE)[1::2]
    used = [form[i + 1 : i + 2] for form in forms for i in _percents(form)]
    return [f"%{letter}" for letter in used if letter == "" or letter not in DIRECTIVES]


def _percents(form: str) -> Iterator[int]:
    i = 0
    while (i := form.find("%", i)) >= 0:
        yield i
        i += 2


assert set(DIRECTIVES) <= set(string.ascii_letters + "%")
