"""`compile_tokenizer`: a tokenizer.json becomes one file of tables that the C runtime reads."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from ondevice.checkpoint.safetensors import parse_json
from ondevice.errors import CheckpointError
from ondevice.tokenizer import layout
from ondevice.tokenizer.added import AddedToken, pack_added, read_added
from ondevice.tokenizer.charsets import CODE_POINTS, paged, probe_space_and_word
from ondevice.tokenizer.compiled import CompiledTokenizer
from ondevice.tokenizer.components import (
    BEHAVIORS,
    Compose,
    Decoder,
    Json,
    Normalizer,
    Prefix,
    Prepend,
    PreTokenizer,
    Replace,
    Split,
    read_decoder,
    read_normalizers,
    read_post_processor,
    read_pre_tokenizer,
    refuse,
)
from ondevice.tokenizer.compose import probe_compositions
from ondevice.tokenizer.layout import Flag, NormalizerKind, Section, StepKind, TokenFlag
from ondevice.tokenizer.model import Model, read_model
from ondevice.tokenizer.template import compile_template

MOST_TOKENS = 1 << 21  # a row is kept for each number up to the largest


def compile_tokenizer(
    tokenizer_json: Path, tokenizer_config: Path | None = None, *, vocab_size: int = 0
) -> CompiledTokenizer:
    """Compile a tokenizer and the chat template of its configuration.

    Tokens up to `vocab_size` (the model's, often rounded up) that the tokenizer lacks decode to
    nothing. Raises CheckpointError for a file that cannot be read and TokenizerError, naming the
    component, for one that the runtime could not follow exactly.
    """
    try:
        text = tokenizer_json.read_text(encoding="utf-8")
        library = Tokenizer.from_str(text)
    except BaseException as error:  # the library raises bare Exception, and panics that are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"cannot read the tokenizer {tokenizer_json}: {error}") from error
    config = parse_json(tokenizer_config, tokenizer_config.read_bytes()) if tokenizer_config else {}
    file = json.loads(text)
    chat = compile_template(config, tokenizer_json.parent)
    template, notes = chat.data, list(chat.notes)
    added = read_added(library, config, chat.source)
    normalizers = read_normalizers(file.get("normalizer"))
    if template is not None and normalizers and any(t.control and t.normalized for t in added):
        template = None
        notes.append(
            "no chat template: a control token is normalized, so typed text could not be told "
            "from the template's own"
        )
    if file.get("truncation") or file.get("padding"):
        notes.append("truncation and padding of tokenizer.json are not applied")
    writer = _Writer(file, library, added, normalizers, vocab_size)
    return CompiledTokenizer(
        writer.data(), template, turn_ends(chat.after_answer, added), tuple(notes)
    )


def turn_ends(after_answer: Iterable[str], added: Iterable[AddedToken]) -> tuple[int, ...]:
    """The control tokens that come first, but for white space, after an assistant's message."""
    controls = sorted((t for t in added if t.control), key=lambda t: -len(t.content))
    texts = [text.lstrip() for text in after_answer]
    found = (next((t.id for t in controls if text.startswith(t.content)), None) for text in texts)
    return tuple(sorted({token for token in found if token is not None}))


def byte_characters() -> list[str]:
    """What ByteLevel writes for each byte: printable ones themselves, the others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    characters = [chr(b) if b in printable else chr(next(others)) for b in range(256)]
    if set(characters) != set(pre_tokenizers.ByteLevel.alphabet()):
        raise refuse("ByteLevel alphabet of this version of the tokenizers library")
    return characters


class _Writer:
    """Gathers the sections of one file."""

    def __init__(
        self,
        file: Mapping[str, Any],
        library: Tokenizer,
        added: list[AddedToken],
        normalizers: list[Normalizer],
        vocab_size: int,
    ) -> None:
        characters = byte_characters()
        self.bytes_of = {c: b for b, c in enumerate(characters)}
        self.text = layout.Text()
        self.sections: dict[Section, tuple[bytes, int]] = {}
        self.pages: list[bytes] = []
        self.page_index: list[bytes] = []
        self.page_count = 0
        pre_tokenizer = read_pre_tokenizer(file.get("pre_tokenizer"), characters)
        self.decoder = read_decoder(file.get("decoder"))
        self.model = read_model(file["model"], library, pre_tokenizer.byte_level, self.bytes_of)
        self.added = added
        self.vocab_size = max(vocab_size, *(i + 1 for i in self.model.vocab.values()), 1)
        self.vocab_size = max(self.vocab_size, *(t.id + 1 for t in added), 1)
        if self.vocab_size > MOST_TOKENS:
            raise refuse(f"token {self.vocab_size - 1}", f"there may be {MOST_TOKENS}")
        self._add_tokens(self.decoder, library)
        probes = self._add_merges(self.model)
        self._add_added_tokens(library)
        self._add_steps(normalizers, pre_tokenizer)
        self._add_post_processor(file.get("post_processor"))
        self.properties = (-1, -1)
        composition_probes = self._add_properties(normalizers)
        self.probes = (*probes, composition_probes)

    def data(self) -> bytes:
        flags = self.model.flags | (Flag.DECODE_BYTES if self.decoder.byte_level else Flag(0))
        strip = (ord(self.decoder.strip or "\0"), self.decoder.strip_count)
        mark = self.text.add(self.model.mark.encode())
        self.sections[Section.PAGE_INDEX] = (b"".join(self.page_index), len(self.page_index))
        self.sections[Section.PAGES] = (b"".join(self.pages), self.page_count)
        text = self.text.data()
        self.sections[Section.TEXT] = (text, len(text))
        return layout.write_file(
            flags=flags,
            vocab_size=self.vocab_size,
            unknown=self.model.unknown,
            strip=strip,
            mark=mark,
            probes=self.probes,
            word_bytes=max(map(len, self.model.words), default=0),
            properties=self.properties,
            sections=self.sections,
        )

    def _add_tokens(self, decoder: Decoder, library: Tokenizer) -> None:
        """What each token matches and what it decodes to."""
        names = {i: name for name, i in self.model.vocab.items()}
        # Not its content: the library calls a normalized token by its normalized name.
        names |= {t.id: library.id_to_token(t.id) or t.content for t in self.added}
        special = {t.content for t in self.added if t.special}
        words = self.model.text_of
        rows = bytearray()
        for i in range(self.vocab_size):
            name = names.get(i)
            if name is None:
                rows += bytes(16)
                continue
            byte = decoder.byte(name)
            flags = TokenFlag.EXISTS | (TokenFlag.SPECIAL if name in special else TokenFlag(0))
            flags |= TokenFlag.BYTE if byte is not None else TokenFlag(0)
            word = self.text.add(words.get(i, b""))
            piece = self.text.add(decoder.piece(name, self.bytes_of))
            if max(word[1], piece[1]) > 0xFFFF:
                raise refuse(f"token {i}", "it is longer than 65535 bytes")
            rows += struct.pack(
                "<IIHHHH", word[0], piece[0], word[1], piece[1], int(flags), byte or 0
            )
        self.sections[Section.TOKENS] = (bytes(rows), self.vocab_size)

    def _add_merges(self, model: Model) -> tuple[int, int]:
        """The hash tables of merges and of whole words; returns how far to search them."""
        pairs = list(model.merges.items())
        table, slots, pair_probes = layout.place_all([layout.hash_pair(*p) for p, _ in pairs])
        rows = np.full((slots, 4), -1, np.int32)
        filled = table >= 0
        merges = np.array([(*pair, *merge) for pair, merge in pairs], np.int32).reshape(-1, 4)
        rows[filled] = merges[table[filled]]
        self.sections[Section.MERGES] = layout.records(rows)

        hashes = [layout.hash_text(word) for word in model.words]
        table, slots, word_probes = layout.place_all(hashes)
        filled = table >= 0
        words = np.zeros((slots, 2), np.uint32)
        words[:, 1] = 0xFFFFFFFF
        known = np.array(
            [(h & 0xFFFFFFFF, i) for h, i in zip(hashes, model.words.values(), strict=True)],
            np.uint32,
        ).reshape(-1, 2)
        words[filled] = known[table[filled]]
        self.sections[Section.WORDS] = layout.records(words)
        self.sections[Section.BYTE_TOKENS] = layout.records(np.array(model.byte_tokens, np.int32))
        return pair_probes, word_probes

    def _add_added_tokens(self, library: Tokenizer) -> None:
        self.sections |= pack_added(self.added, library.normalizer)

    def _add_steps(self, normalizers: list[Normalizer], pre_tokenizer: PreTokenizer) -> None:
        rows = bytearray()
        for normalizer in normalizers:
            match normalizer:
                case Prepend(text):
                    row = (NormalizerKind.PREPEND, *self._string(text), 0, 0)
                case Replace(old, new):
                    row = (NormalizerKind.REPLACE, *self._string(old), *self._string(new))
                case Compose():
                    row = (NormalizerKind.COMPOSE, 0, 0, 0, 0)
            rows += struct.pack("<5I", *row)
        self.sections[Section.NORMALIZERS] = (bytes(rows), len(normalizers))

        rows = bytearray()
        automata, transitions = bytearray(), bytearray()
        count = 0
        for step in pre_tokenizer.steps:
            match step:
                case Split():
                    options = BEHAVIORS.index(step.behavior) | step.invert << 8
                    fields = (StepKind.SPLIT, options, count, 0, 0, 0)
                    automata += self._automaton(step, len(transitions) // 2)
                    transitions += step.automaton.transitions.tobytes()
                    count += 1
                case Prefix():
                    fields = (StepKind.PREFIX, int(step.first_only), *self._string(step.text), 0, 0)
                case Replace(old, new):
                    fields = (StepKind.REPLACE, 0, *self._string(old), *self._string(new))
            rows += struct.pack("<6I", *fields)
        self.sections[Section.STEPS] = (bytes(rows), len(pre_tokenizer.steps))
        self.sections[Section.AUTOMATA] = (bytes(automata), count)
        self.sections[Section.TRANSITIONS] = (bytes(transitions), len(transitions) // 2)

    def _string(self, text: str) -> tuple[int, int]:
        return self.text.add(text.encode())

    def _automaton(self, step: Split, first_transition: int) -> bytes:
        """The record of an automaton: sizes, its page map, and the classes of single bytes."""
        classes = step.automaton.classes
        first = step.byte_classes or classes.of[:256].tobytes()
        states = len(step.automaton.transitions)
        sizes = (states, classes.count, first_transition, self._page_map(classes.of))
        return struct.pack("<5I", *sizes, step.byte_classes is not None) + first + bytes(4)

    def _page_map(self, values: NDArray[np.uint8]) -> int:
        """The number of the page map of `values` [0x110000]."""
        index, pages = paged(values)
        self.page_index.append((index + self.page_count).astype(np.uint16).tobytes())
        self.page_count += len(pages)
        self.pages.append(pages.tobytes())
        return len(self.page_index) - 1

    def _add_post_processor(self, json: Json | None) -> None:
        before, after = read_post_processor(json)
        self.sections[Section.PREFIX] = layout.records(np.array(before, np.int32))
        self.sections[Section.SUFFIX] = layout.records(np.array(after, np.int32))

    def _add_properties(self, normalizers: Iterable[Normalizer]) -> int:
        """Tables of characters for composition and for added tokens; returns search bounds."""
        composing = flagged = -1
        probes = 1
        if any(isinstance(n, Compose) for n in normalizers):
            tables = probe_compositions()
            composing = self._page_map(tables.properties)
            probes = self._add_compositions(tables.decompositions, tables.compositions)
        if any(t.lstrip or t.rstrip or t.single_word for t in self.added):
            space, word = probe_space_and_word()
            flags = np.where(space, 1, 0) + np.where(word, 2, 0)
            flagged = self._page_map(flags.astype(np.uint8))
        self.properties = (composing, flagged)
        return probes

    def _add_compositions(
        self,
        decompositions: Mapping[int, tuple[int, ...]],
        compositions: Mapping[tuple[int, int], int],
    ) -> int:
        rows: list[tuple[int, int, int]] = []
        points: list[int] = []
        for code in sorted(decompositions):
            rows.append((code, len(points), len(decompositions[code])))
            points += decompositions[code]
        assert max(points) < CODE_POINTS
        self.sections[Section.DECOMPOSITIONS] = layout.records(np.array(rows, np.uint32))
        self.sections[Section.CODE_POINTS] = layout.records(np.array(points, np.uint32))
        pairs = list(compositions.items())
        table, slots, probes = layout.place_all([layout.hash_pair(*pair) for pair, _ in pairs])
        filled = table >= 0
        composed = np.zeros((slots, 3), np.uint32)
        composed[filled] = np.array([(*p, c) for p, c in pairs], np.uint32)[table[filled]]
        self.sections[Section.COMPOSITIONS] = layout.records(composed)
        return probes
