"""The model of a tokenizer.json: byte-pair encoding, as tables over token numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ondevice.tokenizer.components import refuse
from ondevice.tokenizer.layout import Flag


@dataclass(frozen=True)
class Model:
    """Byte-pair encoding.

    vocab:       name -> token
    text_of:     token -> the bytes of text it matches
    merges:      (left, right) -> (rank, joined)
    words:       text that encodes to one token by itself -> that token
    byte_tokens: [256] token of a byte (byte level: of the text; else: in place of a character that
                 has no token), or -1
    unknown:     token of anything else, or -1: it is left out
    mark:        text that always starts a word, e.g. U+2581; empty: words must not be cut
    """

    flags: Flag
    vocab: Mapping[str, int]
    text_of: Mapping[int, bytes]
    merges: Mapping[tuple[int, int], tuple[int, int]]
    words: Mapping[bytes, int]
    byte_tokens: tuple[int, ...]
    unknown: int
    mark: str


def read_model(
    json: Mapping[str, Any], library: Tokenizer, byte_level: bool, bytes_of: Mapping[str, int]
) -> Model:
    """The model behind a pre-tokenizer that does or does not write bytes as characters.

    `bytes_of` maps ByteLevel's characters to bytes. Raises TokenizerError.
    """
    kind = json.get("type", "BPE")
    if kind != "BPE":
        raise refuse(f"model {kind}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if json.get(option):
            raise refuse(f"model BPE with {option} {json[option]!r}")
    vocab: dict[str, int] = json["vocab"]
    if byte_level:
        text_of = {
            token: bytes(bytes_of[c] for c in name)
            for name, token in vocab.items()
            if all(c in bytes_of for c in name)
        }
    else:
        text_of = {token: name.encode() for name, token in vocab.items()}
    merges = _merges(json["merges"], vocab)
    flags = _flags(json, byte_level)
    byte_tokens = _byte_tokens(vocab, byte_level, bytes_of, bool(json.get("byte_fallback")))
    if byte_level and Flag.BYTE_FALLBACK in flags and -1 in byte_tokens:
        raise refuse("model BPE with byte_fallback behind ByteLevel", "a byte has no token")
    unknown = json.get("unk_token")
    return Model(
        flags=flags,
        vocab=vocab,
        text_of=text_of,
        merges=merges,
        words=_words(vocab, text_of, library, Flag.WHOLE_WORDS in flags),
        byte_tokens=byte_tokens,
        unknown=-1 if unknown is None else vocab[unknown],
        mark="" if byte_level or Flag.WHOLE_WORDS in flags else _mark(json["merges"], vocab),
    )


def _flags(json: Mapping[str, Any], byte_level: bool) -> Flag:
    flags = Flag.BYTE_LEVEL if byte_level else Flag(0)
    flags |= Flag.BYTE_FALLBACK if json.get("byte_fallback") else Flag(0)
    flags |= Flag.FUSE_UNKNOWN if json.get("fuse_unk") else Flag(0)
    return flags | (Flag.WHOLE_WORDS if json.get("ignore_merges") else Flag(0))


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write them as one string with a space between."""
    split = (m.split(" ") if isinstance(m, str) else m for m in merges)
    return [(left, right) for left, right in split]


def _merges(merges: list[Any], vocab: Mapping[str, int]) -> dict[tuple[int, int], tuple[int, int]]:
    return {
        (vocab[left], vocab[right]): (rank, vocab[left + right])
        for rank, (left, right) in enumerate(_pairs(merges))
    }


def _byte_tokens(
    vocab: Mapping[str, int], byte_level: bool, bytes_of: Mapping[str, int], fallback: bool
) -> tuple[int, ...]:
    if byte_level:
        tokens = {b: vocab.get(character, -1) for character, b in bytes_of.items()}
        return tuple(tokens[b] for b in range(256))
    if not fallback:
        return (-1,) * 256
    return tuple(vocab.get(f"<0x{b:02X}>", -1) for b in range(256))


def _words(
    vocab: Mapping[str, int], text_of: Mapping[int, bytes], library: Tokenizer, whole_words: bool
) -> dict[bytes, int]:
    """Text that becomes one token: found without merging, since most words are such."""
    model = library.model
    words = {}
    for name, token in vocab.items():
        if text_of.get(token):
            if not whole_words:
                found = model.tokenize(name)
                if len(found) != 1 or found[0].id != token:
                    continue
            words[text_of[token]] = token
    return words


def _mark(merges: list[Any], vocab: Mapping[str, int]) -> str:
    """U+2581 where no merge joins anything else to it from the left.

    Then a text may be cut before every mark that follows something else, and its parts encode
    alone to what they encode to together: words instead of one text of any length.
    """
    mark = "\u2581"
    joins = any(
        not left.endswith(mark) and right.startswith(mark) for left, right in _pairs(merges)
    )
    return mark if mark in vocab and not joins else ""
