"""Added tokens: text that is found before anything else is done, such as <|im_start|>."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer

from ondevice.tokenizer.components import token_text
from ondevice.tokenizer.layout import AddedFlag, Section

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
_MORE = "additional_special_tokens"

# Names that mean control in every vocabulary, whatever its files say about them.
_CONVENTIONAL = {"<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>"}


@dataclass(frozen=True)
class AddedToken:
    """As in tokenizer.json; `control`: text typed by a user never becomes this token."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool
    control: bool

    @property
    def flags(self) -> AddedFlag:
        chosen = {
            AddedFlag.SINGLE_WORD: self.single_word,
            AddedFlag.LSTRIP: self.lstrip,
            AddedFlag.RSTRIP: self.rstrip,
            AddedFlag.SPECIAL: self.special,
            AddedFlag.CONTROL: self.control,
        }
        return AddedFlag(sum(int(flag) for flag, is_set in chosen.items() if is_set))


def read_added(library: Tokenizer, config: Mapping[str, Any], template: str) -> list[AddedToken]:
    """The added tokens, special ones first (the order in which the library looks for them).

    A token is a control token if it is special, if the configuration names it, if the chat template
    writes it, if it has the shape <|...|>, or by its conventional name (Phi-3's </s> is not
    special). Others, such as runs of spaces or HTML tags, are part of what users write.
    """
    named = _CONVENTIONAL | {token_text(config.get(key), key) for key in _NAMED}
    more = config.get(_MORE) or []
    named |= {token_text(token, _MORE) for token in (more if isinstance(more, list) else [more])}
    tokens = [
        AddedToken(
            *(number, token.content, token.single_word, token.lstrip, token.rstrip),
            *(token.normalized, token.special),
            control=token.special
            or token.content in named
            or (token.content in template and not token.content.isspace())
            or (token.content.startswith("<|") and token.content.endswith("|>")),
        )
        for number, token in sorted(library.get_added_tokens_decoder().items())
    ]
    return sorted(tokens, key=lambda token: not token.special)


@dataclass
class _Node:
    token: int = -1  # index into the added tokens
    edges: dict[int, _Node] = field(default_factory=dict)


def pack_added(
    tokens: list[AddedToken], normalizer: Normalizer | None
) -> dict[Section, tuple[bytes, int]]:
    """Two tries: tokens found in the text as it is, and in the text as it is normalized.

    A trie is a table [256] of first steps (for speed) over nodes with sorted edges.
    """
    raw = [(t.content, i) for i, t in enumerate(tokens) if not t.normalized]
    normalized = [
        (normalizer.normalize_str(t.content) if normalizer else t.content, i)
        for i, t in enumerate(tokens)
        if t.normalized
    ]
    tries, nodes, edges = bytearray(), bytearray(), bytearray()
    for patterns in (raw, normalized):
        first = [-1] * 256
        root = _build(patterns)
        numbers = {id(root): -1}
        order = [node for node in _breadth_first(root) if node is not root]
        base = len(nodes) // 12
        for number, node in enumerate(order):
            numbers[id(node)] = base + number
        for byte, node in root.edges.items():
            first[byte] = numbers[id(node)]
        for node in order:
            nodes += struct.pack("<iII", node.token, len(edges) // 8, len(node.edges))
            for byte, target in sorted(node.edges.items()):
                edges += struct.pack("<Ii", byte, numbers[id(target)])
        tries += struct.pack("<256i", *first)
    return {
        Section.ADDED: (b"".join(struct.pack("<iI", t.id, t.flags) for t in tokens), len(tokens)),
        Section.TRIES: (bytes(tries), 2),
        Section.TRIE_NODES: (bytes(nodes), len(nodes) // 12),
        Section.TRIE_EDGES: (bytes(edges), len(edges) // 8),
    }


def _build(patterns: Iterable[tuple[str, int]]) -> _Node:
    root = _Node()
    for content, token in patterns:
        node = root
        for byte in content.encode():
            node = node.edges.setdefault(byte, _Node())
        if node.token < 0 and node is not root:
            node.token = token
    return root


def _breadth_first(root: _Node) -> list[_Node]:
    nodes = [root]
    for node in nodes:
        nodes += node.edges.values()
    return nodes
