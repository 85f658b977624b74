"""The parts of a tokenizer.json around its model, reduced to what the runtime has.

Each function takes one component as JSON and returns steps for the C code; a component or an
option without an equal there raises TokenizerError, which names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ondevice.errors import CheckpointError, OndeviceError
from ondevice.tokenizer.automaton import Automaton, build_automaton
from ondevice.tokenizer.charsets import Classes, partition, probe_numeric, probe_punctuation
from ondevice.tokenizer.regex import Chars, Node, RegexError, Repeat, literal, parse_regex

Json = Mapping[str, Any]


class TokenizerError(OndeviceError):
    """A tokenizer or chat template uses something the runtime does not have."""


def refuse(component: str, detail: str = "") -> TokenizerError:
    """The error of an unsupported component, e.g. "normalizer Precompiled"."""
    return TokenizerError(
        f"the tokenizer's {component} is not supported{': ' + detail if detail else ''}"
    )


def token_text(token: Any, key: str) -> str | None:
    """The text of the token at `key` of a tokenizer_config.json, None where it has none.

    Raises CheckpointError for anything but text, an object with a "content", and null.
    """
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise CheckpointError(f"tokenizer_config.json: {key} must be a token's text, not {text!r}")
    return text


def kind_of(component: Json) -> str:
    return str(component.get("type"))


# ---- normalizers: text to text ----


@dataclass(frozen=True)
class Prepend:
    text: str


@dataclass(frozen=True)
class Replace:
    """Every `old`, from the left, becomes `new`."""

    old: str
    new: str


@dataclass(frozen=True)
class Compose:
    """Unicode normalization form C."""


Normalizer = Prepend | Replace | Compose


def read_normalizers(json: Json | None) -> list[Normalizer]:
    if json is None:
        return []
    match kind_of(json):
        case "Sequence":
            return [step for part in json["normalizers"] for step in read_normalizers(part)]
        case "Prepend":
            return [Prepend(json["prepend"])] if json["prepend"] else []
        case "Replace":
            return [Replace(_plain_pattern(json["pattern"], "normalizer Replace"), json["content"])]
        case "NFC":
            return [Compose()]
        case kind:
            raise refuse(f"normalizer {kind}")


def _plain_pattern(pattern: Json, component: str) -> str:
    text = pattern.get("String")
    if not isinstance(text, str) or not text:
        raise refuse(f"{component} with the pattern {dict(pattern)}")
    return text


# ---- pre-tokenizers: text to words ----

BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


@dataclass(frozen=True)
class Split:
    """Cut at the matches of an automaton; `behavior` says what becomes of them.

    In `bytes_mode` the text is bytes written as characters (behind ByteLevel): the classes of its
    256 characters are `byte_classes`.
    """

    automaton: Automaton
    behavior: str
    invert: bool
    byte_classes: bytes | None = None


@dataclass(frozen=True)
class Prefix:
    """Put `text` before a piece that does not start with it; `first_only`: of the whole text."""

    text: str
    first_only: bool = False


Step = Split | Prefix | Replace

# What the pre-tokenizer ByteLevel splits by (OpenAI's GPT-2); its set of patterns is fixed.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    steps: tuple[Step, ...]
    byte_level: bool


def read_pre_tokenizer(json: Json | None, byte_characters: Sequence[str]) -> PreTokenizer:
    """`byte_characters[b]` is the character that ByteLevel writes for byte b."""
    steps: list[Step] = []
    byte_level = False
    for part in _flatten(json, "pretokenizers"):
        made = _pre_tokenizer_steps(part)
        if byte_level:
            made = [_over_bytes(step, part, byte_characters) for step in made]
        if kind_of(part) == "ByteLevel":
            if byte_level:
                raise refuse("second pre-tokenizer ByteLevel")
            byte_level = True
        steps += made
    return PreTokenizer(tuple(steps), byte_level)


def _flatten(json: Json | None, key: str) -> list[Json]:
    if json is None:
        return []
    if kind_of(json) != "Sequence":
        return [json]
    return [leaf for part in json[key] for leaf in _flatten(part, key)]


def _over_bytes(step: Step, json: Json, byte_characters: Sequence[str]) -> Split:
    if not isinstance(step, Split):
        raise refuse(f"pre-tokenizer {kind_of(json)} behind ByteLevel")
    classes = bytes(int(step.automaton.classes.of[ord(c)]) for c in byte_characters)
    return Split(step.automaton, step.behavior, step.invert, classes)


def _pre_tokenizer_steps(json: Json) -> list[Step]:
    kind = kind_of(json)
    reader = _PRE_TOKENIZERS.get(kind)
    if reader is None:
        raise refuse(f"pre-tokenizer {kind}")
    try:
        return reader(json)
    except RegexError as error:
        raise refuse(f"pre-tokenizer {kind}", str(error)) from error


def _byte_level(json: Json) -> list[Step]:
    steps: list[Step] = [Prefix(" ")] if json.get("add_prefix_space", True) else []
    if json.get("use_regex", True):
        steps.append(_split(parse_regex(GPT2_PATTERN), "Isolated"))
    return steps


def _split_pattern(json: Json) -> list[Step]:
    pattern = json["pattern"]
    if "Regex" in pattern:
        node = parse_regex(pattern["Regex"])
    else:
        node = literal(_plain_pattern(pattern, "pre-tokenizer Split"))
    return [_split(node, json["behavior"], bool(json.get("invert", False)))]


def _split(node: Node, behavior: str, invert: bool = False) -> Split:
    if behavior not in BEHAVIORS:
        raise refuse(f"split behavior {behavior}")
    return Split(build_automaton(node), behavior, invert)


def _digits(json: Json) -> list[Step]:
    behavior = "Isolated" if json.get("individual_digits") else "Contiguous"
    return [Split(_one_of(partition([probe_numeric()])), behavior, False)]


def _punctuation(json: Json) -> list[Step]:
    behavior = str(json.get("behavior", "Isolated"))
    return [Split(_one_of(partition([probe_punctuation()])), behavior, False)]


def _one_of(classes: Classes) -> Automaton:
    """Matches one character of the only set of `classes`."""
    read = np.zeros((3, classes.count + 1), np.uint16)
    read[1, sorted(classes.members[0])] = 2
    read[2, :] = 0x8000
    return Automaton(classes, read)


def _white_space(json: Json) -> list[Step]:
    return [_split(Repeat(Chars(r"\s"), 1, None), "Removed")]


def _metaspace(json: Json) -> list[Step]:
    mark = json["replacement"]
    scheme = json.get("prepend_scheme", "always" if json.get("add_prefix_space", True) else "never")
    steps: list[Step] = [Replace(" ", mark)]
    if scheme != "never":
        steps.append(Prefix(mark, first_only=scheme == "first"))
    if json.get("split", True):
        steps.append(_split(literal(mark), "MergedWithNext"))
    return steps


_PRE_TOKENIZERS: dict[str, Callable[[Json], list[Step]]] = {
    "ByteLevel": _byte_level,
    "Split": _split_pattern,
    "Digits": _digits,
    "Punctuation": _punctuation,
    "WhitespaceSplit": _white_space,
    "Metaspace": _metaspace,
}


# ---- post-processors: tokens around a text ----


def read_post_processor(json: Json | None) -> tuple[list[int], list[int]]:
    """The tokens before and after a text where special tokens are added."""
    if json is None:
        return [], []
    match kind_of(json):
        case "ByteLevel":  # changes offsets only
            return [], []
        case "TemplateProcessing":
            return _template_processing(json)
        case "Sequence":
            before: list[int] = []
            after: list[int] = []
            for part in json["processors"]:
                outer = read_post_processor(part)
                before, after = outer[0] + before, after + outer[1]
            return before, after
        case "BertProcessing" | "RobertaProcessing":
            return [json["cls"][1]], [json["sep"][1]]
        case kind:
            raise refuse(f"post-processor {kind}")


def _template_processing(json: Json) -> tuple[list[int], list[int]]:
    sides: list[list[int]] = [[]]
    for piece in json["single"]:
        if "Sequence" in piece:
            sides.append([])
        else:
            sides[-1] += json["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    if len(sides) != 2:
        raise refuse("post-processor TemplateProcessing", "its text must stand in it once")
    return sides[0], sides[1]


# ---- decoders: tokens to text ----


@dataclass(frozen=True)
class Decoder:
    """How tokens become text.

    byte_level: tokens are bytes written as characters. Otherwise `replaced` is applied to each
    token, tokens such as <0x0A> are bytes where `byte_fallback`, and from the start of the whole
    text up to `strip_count` times `strip` is removed.
    """

    byte_level: bool
    replaced: tuple[Replace, ...] = ()
    byte_fallback: bool = False
    strip: str = ""
    strip_count: int = 0

    def piece(self, token: str, bytes_of: Mapping[str, int]) -> bytes:
        """What one token contributes."""
        if self.byte_level:
            if all(c in bytes_of for c in token):
                return bytes([bytes_of[c] for c in token])
            return token.encode()
        for step in self.replaced:
            token = token.replace(step.old, step.new)
        return token.encode()

    def byte(self, token: str) -> int | None:
        """The byte that a token such as <0x0A> stands for."""
        if not self.byte_fallback or len(token) != 6 or not token.isascii():
            return None
        for step in self.replaced:
            token = token.replace(step.old, step.new)
        found = re.fullmatch(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>", token)
        return int(found[1], 16) if found else None


def read_decoder(json: Json | None) -> Decoder:
    parts = _flatten(json, "decoders")
    kinds = [kind_of(part) for part in parts]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return Decoder(byte_level=True)
    if not parts:
        raise refuse("missing decoder", "its tokens would be joined by spaces")
    replaced: list[Replace] = []
    byte_fallback = fused = False
    strip, strip_count = "", 0
    for kind, part in zip(kinds, parts, strict=True):
        if kind == "Replace" and not byte_fallback and not fused:
            pattern = _plain_pattern(part["pattern"], "decoder Replace")
            replaced.append(Replace(pattern, part["content"]))
        elif kind == "ByteFallback" and not fused:
            byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not strip and not part["stop"]:
            strip, strip_count = part["content"], part["start"]
            if len(strip) != 1 or not strip.isascii():
                raise refuse("decoder Strip", f"it removes {strip!r}")
        else:
            raise refuse(f"decoder {kind}", f"in the sequence {', '.join(kinds)}")
    if not strip_count:
        strip = ""
    return Decoder(False, tuple(replaced), byte_fallback, strip, strip_count)
