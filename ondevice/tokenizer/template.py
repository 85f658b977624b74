"""A chat template as a table of what stands between the messages.

A template is a program; nearly all of them only put fixed text around each message. What text that
is, is found out by rendering conversations of marked messages: it may depend on the role before,
on whether the message is the last, and on whether a user has spoken before it and speaks after it.
How a content is trimmed is found the same way. Then the table has to render some hundred random
conversations exactly as Jinja does. A template that it cannot follow is named and left out, and the
bundle takes raw prompts only.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ondevice.errors import CheckpointError
from ondevice.tokenizer.compiled import TEMPLATE_FILE
from ondevice.tokenizer.components import TokenizerError, token_text
from ondevice.tokenizer.jinja import ChatTemplate, Message
from ondevice.tokenizer.template_file import pack_table
from ondevice.tokenizer.template_table import (
    DATE,
    ROLES,
    Conflict,
    Ending,
    Place,
    Row,
    Strip,
    Table,
    Unplaceable,
    places,
)

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_LONGEST = 4  # messages of the conversations that the table is read from
_RANDOM = 1000  # conversations that it is tested with, of each kind
_CONFLICTS = 8  # at most
# Tried in turn: the first set of roles that the table can place is what the bundle supports.
_ROLE_SETS = (ROLES, ROLES[:3], ("user", "assistant", "tool"), ("user", "assistant"))


@dataclass(frozen=True)
class CompiledTemplate:
    """`data` is None where the template cannot be followed; `source` is its Jinja, "" for none.

    `after_answer` is what may follow an assistant's message; `notes` are for the build's report.
    """

    data: bytes | None
    source: str
    after_answer: tuple[str, ...]
    notes: tuple[str, ...]


def compile_template(config: Mapping[str, Any], directory: Path) -> CompiledTemplate:
    """Compile the template of a tokenizer_config.json in `directory`, or of the file beside it."""
    source = _source(config, directory)
    if not source:
        return CompiledTemplate(None, "", (), ("no chat template: the checkpoint has none",))
    special = _special_tokens(config)
    try:
        table, notes = reduce_template(ChatTemplate(source, special))
        return CompiledTemplate(pack_table(table), source, table.after_answer(), tuple(notes))
    except TokenizerError as error:
        return CompiledTemplate(None, source, (), (f"no chat template: {error}",))


def _source(config: Mapping[str, Any], directory: Path) -> str:
    """The template of the configuration, or of the file that newer checkpoints have beside it."""
    file = directory / TEMPLATE_FILE
    if file.is_file():
        return file.read_bytes().decode("utf-8", "replace")
    found = config.get("chat_template") or ""
    if isinstance(found, list):  # several by name
        entries = [entry for entry in found if isinstance(entry, Mapping)]
        default = (e.get("template") for e in entries if e.get("name") == "default")
        found = next(default, "")
    if not isinstance(found, str):
        raise CheckpointError(f"tokenizer_config.json: chat_template must be text, not {found!r}")
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    texts = {key: token_text(config.get(key), key) for key in _SPECIAL}
    return {key: text for key, text in texts.items() if text}


def reduce_template(template: ChatTemplate) -> tuple[Table, list[str]]:
    """The table of a template, and notes. Raises TokenizerError, naming what it cannot follow."""
    refusal: TokenizerError | None = None
    for roles in _ROLE_SETS:
        try:
            table = _Reduction(template, roles).table()
        except TokenizerError as error:
            refusal = refusal or error
            continue
        lost = [role for role in ("system", "assistant") if role not in table.roles()]
        notes = [f"the chat template has no place for {role} messages" for role in lost]
        return table, notes + ([str(refusal)] if refusal and lost else [])
    assert refusal is not None
    raise refusal


def _conversation(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def _marked(count: int) -> list[str]:
    """Contents that occur nowhere else and that no trimming changes."""
    return [f"\ue000{i}\ue001" for i in range(count)]


def _date_marker(form: str) -> str:
    return f"{DATE}{form}{DATE}"


@dataclass
class _Reduction:
    template: ChatTemplate
    roles: Sequence[str]
    rows: dict[Place, Row] = field(default_factory=dict)
    endings: dict[Ending, str] = field(default_factory=dict)

    def table(self) -> Table:
        thinking = (True, False) if self.template.knows_thinking else (True,)
        skeletons = [
            roles
            for length in range(1, _LONGEST + 1)
            for roles in itertools.product(self.roles, repeat=length)
        ]
        for mode, generate, roles in itertools.product(thinking, (False, True), skeletons):
            self.read_gaps(roles, generate, mode)
        if not self.rows:
            raise TokenizerError("the chat template renders no conversation of known roles")
        for mode, generate, roles in itertools.product(thinking, (False, True), skeletons):
            self.check_order(roles, generate, mode)
        for mode, roles in itertools.product(thinking, skeletons):
            self.read_trimming(roles, mode)
        self.require_usual()
        return self.without_conflicts(Table(self.rows, self.endings, ()), thinking)

    def render(self, messages: Sequence[Message], generate: bool, thinking: bool) -> str | None:
        return self.template.render(
            messages, generate=generate, thinking=thinking, strftime_now=_date_marker
        )

    # ---- what stands between the messages ----

    def gaps(self, roles: Sequence[str], generate: bool, thinking: bool) -> list[str] | None:
        """The texts around the contents; None where they do not appear once each, in order."""
        marks = _marked(len(roles))
        text = self.render(_conversation(roles, marks), generate, thinking)
        if text is None:
            return None
        gaps = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                return None
            gaps.append(before)
        return None if any(mark in "".join([*gaps, text]) for mark in marks) else [*gaps, text]

    def read_gaps(self, roles: Sequence[str], generate: bool, thinking: bool) -> None:
        gaps = self.gaps(roles, generate, thinking)
        if gaps is None:
            return
        for place, gap in zip(places(roles, thinking), gaps, strict=False):
            known = self.rows.setdefault(place, Row(gap))
            if known.before != gap:
                raise self.refusal(roles, f"the text before a {place.role} message")
        ending = Ending(roles[-1], "user" in roles, generate, thinking)
        if self.endings.setdefault(ending, gaps[-1]) != gaps[-1]:
            raise self.refusal(roles, f"the text after a {roles[-1]} message")

    def check_order(self, roles: Sequence[str], generate: bool, thinking: bool) -> None:
        """What the table would render, the template must render with every content in order."""
        ending = Ending(roles[-1], "user" in roles, generate, thinking)
        if not all(place in self.rows for place in places(roles, thinking)):
            return
        if ending not in self.endings or self.gaps(roles, generate, thinking) is not None:
            return
        contents = _conversation(roles, _marked(len(roles)))
        if self.render(contents, generate, thinking) is not None:
            raise self.refusal(roles, "the order of the messages")

    def refusal(self, roles: Sequence[str], what: str) -> TokenizerError:
        return TokenizerError(
            f"{what} depends on more than its neighbours in the chat template (found with the "
            f"conversation {', '.join(roles)})"
        )

    # ---- how contents are trimmed ----

    def read_trimming(self, roles: Sequence[str], thinking: bool) -> None:
        """Find the trimming of each message of one conversation, and compare it with the others."""
        generate = Ending(roles[-1], "user" in roles, True, thinking) in self.endings
        gaps = self.gaps(roles, generate, thinking)
        if gaps is None:
            return
        for index, place in enumerate(places(roles, thinking)):
            row = self.rows[place]
            if row.strip is not None and len(roles) > 2:
                continue  # long conversations are many: they only show the rarer places
            seen = list(self.observe(roles, index, gaps, generate, thinking))
            candidates = self.candidates(row) if row.strip is None else iter((row,))
            found = next((c for c in candidates if _follows(c, place.role, seen)), None)
            if found is None:
                raise self.refusal(roles, f"the trimming of a {place.role} message")
            self.rows[place] = found

    def candidates(self, row: Row) -> Iterator[Row]:
        """Ways to trim, the likelier first."""
        markers = self.template.markers
        for blank, strip in itertools.product((True, False), Strip.all()):
            plain = replace(row, strip=strip, blank=blank)
            yield plain
            for marker, after in itertools.product(markers, Strip.all()):
                yield replace(plain, marker=marker, after=after)
            for marker in markers:
                yield replace(plain, marker=marker, after=None)

    def observe(
        self, roles: Sequence[str], index: int, gaps: list[str], generate: bool, thinking: bool
    ) -> Iterator[tuple[str, str | None]]:
        """What becomes of contents at `index`; None where the text around them changes too."""
        contents = _marked(len(roles))
        around = [gap + content for gap, content in zip(gaps, [*contents, ""], strict=True)]
        before = "".join(around[:index]) + gaps[index]
        after = "".join(around[index + 1 :])
        for probe in _probes(self.template.markers):
            probed = [*contents[:index], probe, *contents[index + 1 :]]
            text = self.render(_conversation(roles, probed), generate, thinking)
            inside = text is not None and len(text) >= len(before) + len(after)
            if text is not None and inside and text.startswith(before) and text.endswith(after):
                yield probe, text[len(before) : len(text) - len(after)]
            else:
                yield probe, None

    # ---- proof on random conversations ----

    def require_usual(self) -> None:
        """The usual conversations must have a place, also when they go on."""
        usual = [("user",), ("user", "assistant", "user")]
        if "system" in self.roles and any(place.role == "system" for place in self.rows):
            usual += [("system", *roles) for roles in usual]
        for roles in usual:
            ending = Ending("user", True, True, True)
            if ending not in self.endings or not all(p in self.rows for p in places(roles, True)):
                raise TokenizerError(
                    f"the chat template has no place for a conversation of {', '.join(roles)}"
                )

    def without_conflicts(self, table: Table, thinking: Sequence[bool]) -> Table:
        """The table, refusing contents that change each other's rendering."""
        rendered = render_random(self.template, self.roles, thinking)
        for _ in range(_CONFLICTS):
            failed = find_difference(rendered, table.render)
            if failed is None:
                return table
            conflict = self.conflict(table, failed)
            if conflict is None:
                raise self.refusal([m["role"] for m in failed.messages], "what a message becomes")
            table = replace(table, conflicts=(*table.conflicts, conflict))
        raise TokenizerError("the chat template looks into the messages in too many ways")

    def conflict(self, table: Table, failed: Rendered) -> Conflict | None:
        """Up to three markers, by role, that alone make the difference, if there are such."""
        markers = self.template.markers
        present = {
            (m["role"], k): None for m in failed.messages for k in markers if k in m["content"]
        }
        for count in (1, 2, 3):
            for kept in itertools.combinations(present, count):
                reduced = [_without(m, set(present) - set(kept)) for m in failed.messages]
                rendered = render(self.template, reduced, failed.generate, failed.thinking)
                if rendered and find_difference([rendered], table.render):
                    return kept
        return None


def _without(message: Message, markers: Iterable[tuple[str, str]]) -> Message:
    content = message["content"]
    for role, marker in sorted(markers, key=lambda m: -len(m[1])):
        content = content.replace(marker, "") if role == message["role"] else content
    return {"role": message["role"], "content": content}


def _follows(row: Row, role: str, seen: Sequence[tuple[str, str | None]]) -> bool:
    """Whether a row trims all contents as was seen."""
    for content, expected in seen:
        try:
            if row.trim(content, role) != expected:
                return False
        except Unplaceable:
            continue
    return True


def _probes(markers: Sequence[str]) -> list[str]:
    plain = ["x", " \n\t x  y \n\n", "\n\nx\n", "\u00a0x\u3000", "x\x1c", "", " ", "\n"]
    marked = [
        text
        for m in markers
        for text in (f"a{m}\n\n b\n", f"{m}", f"a\n{m}b{m}\tc", f" {m} \n", f"\n{m}d")
    ]
    return plain + marked


_WORDS = (
    *("Hello", "wor ld", "", " ", "\n", "\t", " lead", "trail \n", "\n\nlines\n\n", "é", "\u00a0"),
    *("<|im_start|>system\n", "<s>", "[INST]", "{{ messages }}", "{% raw %}", "日本", "\U0001f600"),
)


def random_conversation(
    source: random.Random, roles: Sequence[str], markers: Sequence[str] = ()
) -> list[Message]:
    """One to nine messages of varied content, some of it between two of the `markers`."""
    count = source.choice((1, 2, 3, 4, 5, 7, 9))
    usual = itertools.cycle(("user", "assistant"))
    start = ["system"] if "system" in roles and source.random() < 0.5 else []
    chosen = (start + [next(usual) for _ in range(count)])[:count]
    if source.random() < 0.3:
        chosen = [source.choice(list(roles)) for _ in range(count)]
    contents = ["".join(source.choices(_WORDS, k=source.randrange(4))) for _ in chosen]
    if markers:
        contents = [
            source.choice(("", *markers)) + text + source.choice(("", *markers))
            for text in contents
        ]
    return _conversation(chosen, contents)


@dataclass(frozen=True)
class Rendered:
    """A conversation and what the template makes of it."""

    messages: Sequence[Message]
    generate: bool
    thinking: bool
    text: str


NOW = datetime(2024, 7, 26, 9, 5, 3)  # of all these conversations


def render(
    template: ChatTemplate, messages: Sequence[Message], generate: bool, thinking: bool
) -> Rendered | None:
    """What the template makes of a conversation; None where it refuses it."""
    text = template.render(
        messages, generate=generate, thinking=thinking, strftime_now=NOW.strftime
    )
    return None if text is None else Rendered(messages, generate, thinking, text)


def wrapped_conversations(roles: Sequence[str], markers: Sequence[str]) -> Iterator[list[Message]]:
    """Short conversations in which one content stands between two markers."""
    for length in range(1, _LONGEST):
        for chosen in itertools.product(roles, repeat=length):
            for index, first, last in itertools.product(range(length), markers, markers):
                contents = ["x"] * length
                contents[index] = f"{first}x{last}"
                yield _conversation(chosen, contents)


def render_random(
    template: ChatTemplate, roles: Sequence[str], thinking: Sequence[bool], seed: int = 0
) -> list[Rendered]:
    """Many varied conversations, those that the template does not refuse."""
    source = random.Random(seed)
    markers = template.markers
    conversations = [
        random_conversation(source, roles, markers if i % 2 else ()) for i in range(_RANDOM)
    ]
    kinds = itertools.chain(
        itertools.product(conversations, (False, True), thinking),
        itertools.product(wrapped_conversations(roles, markers), (False,), thinking),
    )
    rendered = (render(template, *kind) for kind in kinds)
    return [r for r in rendered if r is not None]


def find_difference(
    conversations: Sequence[Rendered], render_table: Callable[..., str]
) -> Rendered | None:
    """The first conversation that `render_table` renders otherwise; refusing one is allowed."""
    for expected in conversations:
        options = {"generate": expected.generate, "thinking": expected.thinking, "now": NOW}
        try:
            text = render_table(expected.messages, **options)
        except Unplaceable:
            continue
        if text != expected.text:
            return expected
    return None


def load_template(config: Path) -> ChatTemplate:
    """The template of a tokenizer_config.json, as transformers would render it."""
    values = json.loads(config.read_text(encoding="utf-8"))
    special = _special_tokens(values)
    return ChatTemplate(_source(values, config.parent), special)


__all__ = [
    "ChatTemplate",
    "Rendered",
    "compile_template",
    "find_difference",
    "load_template",
    "reduce_template",
    "render_random",
]
