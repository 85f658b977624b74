"""Regular expressions of pre-tokenizers, as Oniguruma reads them, parsed into a small tree.

What the tree has: sets of characters, sequences, ordered alternatives, repeats (greedy or lazy) and
a look at the one next character. Everything else (anchors, look-behind, back references,
possessive repeats, ...) raises RegexError with its place. A set is kept as the pattern's own text:
`charsets` asks the library what it matches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ondevice.errors import OndeviceError


class RegexError(OndeviceError):
    """A pattern uses a construct that has no automaton here."""


@dataclass(frozen=True)
class Chars:
    """One character that `pattern` matches; `folded`: regardless of case."""

    pattern: str
    folded: bool = False


@dataclass(frozen=True)
class Look:
    """No character, but the next one is (not: `negated`) in the set; the end counts as not."""

    chars: Chars
    negated: bool


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """The first alternative that leads to a match."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times (None: without limit), as often as possible unless `lazy`."""

    part: Node
    least: int
    most: int | None
    lazy: bool = False


Node = Chars | Look | Sequence | Choice | Repeat

_MOST_COPIES = 256  # of a counted repeat, which is written out
_CLASS_ESCAPES = "sSdDwWhH"
_CONTROL_ESCAPES = "rntfvae"
# Two letters that Oniguruma, ignoring case, also finds as one character (as in the German sharp s).
_JOINED = ("ss", "st", "ff", "fi", "fl")


def parse_regex(pattern: str) -> Node:
    """The tree of `pattern`. Raises RegexError."""
    parser = _Parser(pattern)
    node = parser.choice(ignore_case=False)
    if parser.place < len(pattern):
        raise parser.error("an unmatched )")
    return node


def literal(text: str) -> Node:
    """The tree that matches `text` alone."""
    return Sequence(tuple(Chars(_quote(c)) for c in text))


def _quote(character: str) -> str:
    if character in "\r\n\t":
        return {"\r": r"\r", "\n": r"\n", "\t": r"\t"}[character]
    return re.escape(character) if character.isascii() else character


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0

    def error(self, construct: str) -> RegexError:
        return RegexError(
            f"the regular expression {self.pattern!r} has {construct} at character {self.place}; "
            "that is not supported"
        )

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.place)

    def take(self, text: str) -> bool:
        found = self.peek(text)
        self.place += len(text) if found else 0
        return found

    def choice(self, ignore_case: bool) -> Node:
        options = [self.sequence(ignore_case)]
        while self.take("|"):
            options.append(self.sequence(ignore_case))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self, ignore_case: bool) -> Node:
        parts: list[Node] = []
        before = ""  # the letter before, where case is ignored
        while self.place < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            start = self.place
            part = self.atom(ignore_case)
            letter = self.pattern[start : self.place].lower() if ignore_case else ""
            if before + letter in _JOINED or (letter and not letter.isascii()):
                raise self.error(f"letters that fold together ({before + letter!r})")
            before = letter
            parts.append(self.repeated(part))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def atom(self, ignore_case: bool) -> Node:
        if self.take("("):
            return self.group(ignore_case)
        if self.peek("["):
            return Chars(self.bracket(), ignore_case)
        if self.peek("\\"):
            return Chars(self.escape(), ignore_case)
        if self.peek("^") or self.peek("$"):
            raise self.error(f"the anchor {self.pattern[self.place]}")
        character = self.pattern[self.place]
        if character in "*+?{":
            raise self.error(f"{character} with nothing before it")
        self.place += 1
        return Chars("." if character == "." else _quote(character), ignore_case)

    def group(self, ignore_case: bool) -> Node:
        """What follows an opening parenthesis, through its end."""
        look = self.take("?=") or (self.take("?!") and None)
        if look is not False:
            node: Node = self.choice(ignore_case)
            if not isinstance(node, Chars):
                raise self.error("a look-ahead at more than one character")
            node = Look(node, negated=look is None)
        elif self.take("?i:"):
            node = self.choice(True)
        elif self.take("?:") or not self.peek("?"):
            node = self.choice(ignore_case)
        else:
            raise self.error(f"the group ({self.pattern[self.place : self.place + 2]}")
        if not self.take(")"):
            raise self.error("a missing )")
        return node

    def bracket(self) -> str:
        """The text of a character class; nested classes are kept as they are."""
        start, depth = self.place, 0
        while self.place < len(self.pattern):
            character = self.pattern[self.place]
            self.place += 2 if character == "\\" else 1
            depth += (character == "[") - (character == "]")
            if depth == 0:
                return self.pattern[start : self.place]
        raise self.error("a missing ]")

    def escape(self) -> str:
        """The text of an escape that stands for one character."""
        start = self.place
        self.place += 2
        kind = self.pattern[start + 1 : start + 2]
        if kind in ("p", "P"):
            if not self.take("{") or "}" not in self.pattern[self.place :]:
                raise self.error("a property without braces")
            self.place = self.pattern.index("}", self.place) + 1
        elif kind == "" or (kind.isalnum() and kind not in _CLASS_ESCAPES + _CONTROL_ESCAPES):
            self.place = start
            raise self.error(f"the escape \\{kind}")
        return self.pattern[start : self.place]

    def repeated(self, part: Node) -> Node:
        """`part` with the repeat that follows it, if any."""
        counted = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.place)
        if self.take("?"):
            least, most = 0, 1
        elif self.take("*"):
            least, most = 0, None
        elif self.take("+"):
            least, most = 1, None
        elif counted and (counted[1] or counted[3]):
            self.place = counted.end()
            least = int(counted[1] or 0)
            most = (int(counted[3]) if counted[3] else None) if counted[2] else least
            if max(least, most or 0) > _MOST_COPIES:
                raise self.error(f"a repeat of more than {_MOST_COPIES} times")
        elif self.peek("{"):
            raise self.error("a brace that opens no repeat")
        else:
            return part
        if isinstance(part, Look):
            raise self.error("a repeated look-ahead")
        if self.peek("+"):
            raise self.error("a possessive repeat")
        if self.peek("*") or self.peek("{") or (counted and self.peek("?")):
            raise self.error("a repeat of a repeat")
        return Repeat(part, least, most, lazy=self.take("?"))
