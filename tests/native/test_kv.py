"""The pool of KV blocks as a state machine: what tables hold, share, copy and forget.

The place of a token in a block holds a checksum of all tokens up to it, as keys and values depend
on all of them: a table that reads back another checksum shares what it should not, or has lost what
it wrote to somebody else's write.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_bool, c_int32, c_int64, c_void_p
from itertools import accumulate
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

BLOCK_TOKENS = 32
BLOCKS = 9
TABLES = 4
MOST_TOKENS = 200


class Entry(ctypes.Structure):
    _fields_ = [
        ("tokens", c_int32 * BLOCK_TOKENS),
        ("parent", c_int32),
        ("next", c_int32),
        ("older", c_int32),
        ("newer", c_int32),
        ("known", c_bool),
    ]


class Index(ctypes.Structure):
    _fields_ = [
        ("entries", POINTER(Entry)),
        ("buckets", POINTER(c_int32)),
        ("block_count", c_int32),
        ("bucket_count", c_int32),
        ("idle_count", c_int32),
    ]


class Pool(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("block_bytes", c_int64),
        ("block_count", c_int32),
        ("free_count", c_int32),
        ("free_blocks", POINTER(c_int32)),
        ("references", POINTER(c_int32)),
        ("index", Index),
    ]


class Table(ctypes.Structure):
    _fields_ = [("blocks", POINTER(c_int32)), ("count", c_int32)]


class Found(ctypes.Structure):
    _fields_ = [("count", c_int32), ("cost", c_int32)]


@pytest.fixture(scope="module")
def library(internals: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(internals))
    library.od_kv_open.argtypes = [c_void_p, c_int32, c_int64]
    for name in ("od_kv_open", "od_kv_grow", "od_kv_own", "od_kv_is_own"):
        getattr(library, name).restype = c_bool
    library.od_kv_find.restype = Found
    return library


def checksums(tokens: Sequence[int]) -> list[int]:
    """Of tokens[:1], tokens[:2], ..., as int32."""
    sums = accumulate(tokens, lambda total, token: crc32(bytes([token]), total), initial=0)
    return [total >> 1 for total in sums][1:]


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


class Text:
    """A table with room for MOST_TOKENS, and the tokens that its blocks are said to hold."""

    def __init__(self) -> None:
        self.room = (c_int32 * blocks_for(MOST_TOKENS))()
        self.table = Table(ctypes.cast(self.room, POINTER(c_int32)), 0)
        self.tokens: list[int] = []

    @property
    def blocks(self) -> list[int]:
        return list(self.room[: self.table.count])


class KvMachine(RuleBasedStateMachine):
    """Texts that grow from a small alphabet (so they often agree), are cut back and are forked."""

    library: ctypes.CDLL

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        assert self.library.od_kv_open(byref(self.pool), BLOCKS, BLOCK_TOKENS * 4)
        memory = (c_int32 * (BLOCKS * BLOCK_TOKENS)).from_address(self.pool.data)
        self.data: NDArray[np.int32] = np.ctypeslib.as_array(memory).reshape(BLOCKS, BLOCK_TOKENS)
        self.texts = [Text() for _ in range(TABLES)]

    def call(self, name: str, text: Text, *arguments: object) -> object:
        return getattr(self.library, f"od_kv_{name}")(
            byref(self.pool), byref(text.table), *arguments
        )

    @property
    def available(self) -> int:
        return self.library.od_kv_available(byref(self.pool))  # type: ignore[no-any-return]

    @rule(number=st.integers(0, 3), n=st.integers(1, 80), token=st.integers(1, 2))
    def write(self, number: int, n: int, token: int) -> None:
        """As the engine does it: reuse, grow, make the first block one's own, write, publish."""
        text = self.texts[number]
        whole = [*text.tokens, *[token] * n]
        if len(whole) > MOST_TOKENS:
            return
        tokens = (c_int32 * len(whole))(*whole)
        computed = self.reuse(text, tokens)
        free = self.available
        before = text.blocks
        grown = self.call("grow", text, blocks_for(len(whole)))
        assert grown == (blocks_for(len(whole)) - len(before) <= free)
        if not grown or not self.own(text, computed // BLOCK_TOKENS):
            self.call("shrink", text, blocks_for(computed))
            text.tokens = whole[:computed]
            return
        for i, checksum in list(enumerate(checksums(whole)))[computed:]:
            self.data[text.blocks[i // BLOCK_TOKENS], i % BLOCK_TOKENS] = checksum
        for place in range(computed // BLOCK_TOKENS, len(whole) // BLOCK_TOKENS):
            self.call("publish", text, tokens, place)
        text.tokens = whole

    def reuse(self, text: Text, tokens: ctypes.Array[c_int32]) -> int:
        """Returns how many tokens the table holds now."""
        first, end = len(text.tokens) // BLOCK_TOKENS, (len(tokens) - 1) // BLOCK_TOKENS
        found = self.call("find", text, tokens, first, end)
        assert isinstance(found, Found)
        before = self.available
        self.call("adopt", text, tokens, first, found.count)
        assert before - self.available == found.cost
        if found.count == 0:
            return len(text.tokens)
        return (first + found.count) * BLOCK_TOKENS

    def own(self, text: Text, place: int) -> bool:
        """Refused only where others hold the block and none is available for a copy."""
        block, free = text.blocks[place], self.available
        references = self.pool.references[block]
        owned = bool(self.call("own", text, place))
        assert owned == (free > 0 or references == 1)
        if owned:
            assert self.library.od_kv_is_own(byref(self.pool), text.blocks[place])
        return owned

    @rule(number=st.integers(0, 3), count=st.integers(0, MOST_TOKENS))
    def rewind(self, number: int, count: int) -> None:
        text = self.texts[number]
        del text.tokens[count:]
        self.call("shrink", text, blocks_for(len(text.tokens)))

    @rule(parent=st.integers(0, 3), child=st.integers(0, 3))
    def fork(self, parent: int, child: int) -> None:
        if parent == child:
            return
        self.rewind(child, 0)
        source, target = self.texts[parent], self.texts[child]
        self.call("fork", source, byref(target.table), source.table.count)
        target.tokens = list(source.tokens)

    @invariant()
    def every_table_reads_what_it_wrote(self) -> None:
        for text in self.texts:
            assert len(text.blocks) == blocks_for(len(text.tokens))
            held = self.data[text.blocks].reshape(-1)[: len(text.tokens)]
            assert held.tolist() == checksums(text.tokens)

    @invariant()
    def full_blocks_are_shared(self) -> None:
        """Equal prefixes are in the same blocks, and only there."""
        places: dict[tuple[int, ...], int] = {}
        for text in self.texts:
            for place in range(len(text.tokens) // BLOCK_TOKENS):
                prefix = tuple(text.tokens[: (place + 1) * BLOCK_TOKENS])
                assert places.setdefault(prefix, text.blocks[place]) == text.blocks[place]

    @invariant()
    def blocks_are_free_held_or_idle(self) -> None:
        held = [block for text in self.texts for block in text.blocks]
        assert self.pool.references[:BLOCKS] == [held.count(b) for b in range(BLOCKS)]
        free = self.pool.free_blocks[: self.pool.free_count]
        assert sorted([*free, *self.idle(), *set(held)]) == list(range(BLOCKS))
        assert self.available == len(free) + len(self.idle())

    @invariant()
    def known_blocks_hold_their_tokens_and_hang_from_known_blocks(self) -> None:
        idle = self.idle()
        entries = self.pool.index.entries
        for block in (b for b in range(BLOCKS) if entries[b].known):
            parent = entries[block].parent
            assert self.data[block].tolist() == checksums(self.prefix(block))[-BLOCK_TOKENS:]
            assert parent == -1 or entries[parent].known
            if parent in idle:
                assert idle.index(block) < idle.index(parent)  # so it is taken first

    def prefix(self, block: int) -> list[int]:
        """The tokens that the index says a block and those before it hold."""
        entry = self.pool.index.entries[block]
        return [*([] if entry.parent == -1 else self.prefix(entry.parent)), *entry.tokens]

    def idle(self) -> list[int]:
        """Oldest first."""
        blocks: list[int] = []
        entries = self.pool.index.entries
        at = entries[BLOCKS].newer
        while at != BLOCKS:
            blocks.append(at)
            at = entries[at].newer
        assert len(blocks) == self.pool.index.idle_count
        return blocks

    def teardown(self) -> None:
        self.library.od_kv_close(byref(self.pool))


def test_kv_blocks(library: ctypes.CDLL) -> None:
    KvMachine.library = library
    run_state_machine_as_test(
        KvMachine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


def test_kv_blocks_for(library: ctypes.CDLL) -> None:
    sizes = [library.od_kv_blocks_for(n) for n in (0, 1, 32, 33, 64, 65)]
    assert sizes == [0, 1, 1, 2, 2, 3]
