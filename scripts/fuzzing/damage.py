"""Changes of a file's bytes, each following from a source of random numbers alone."""

from __future__ import annotations

import json
import random
import re
from typing import Any

NUMBERS = (
    *(0, 1, -1, 2, 3, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
)
TEXTS = (
    *("", " ", "a", "\0", "\n", "\ud800", "\u00e9", "\U0001f600", "..", "../x", "/dev/zero"),
    *("a" * 70000, "%s%n", "{", "}", "{layer}", "[a-z", "(a*)*b", "<s>", "f32", "BF16", "LSTM"),
)
VALUES = (None, True, False, [], {}, [[]], [0], [None], {"": 0}, {"type": "Sequence"}, {"a": {}})


def damage_bytes(source: random.Random, data: bytes) -> bytes:
    """One to four small changes: of bits, bytes, numbers written in digits, of order and length."""
    for _ in range(source.choice((1, 1, 2, 4))):
        data = source.choice(BYTE_CHANGES)(source, data)
    return data


def place(source: random.Random, data: bytes) -> int:
    """Somewhere in the data, often near its start, where headers are."""
    most = len(data) if source.random() < 0.5 else min(len(data), 128)
    return source.randrange(most + 1)


def flip(source: random.Random, data: bytes) -> bytes:
    at = place(source, data)
    return (
        data[:at] + bytes(b ^ 1 << source.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]
    )


def overwrite(source: random.Random, data: bytes) -> bytes:
    at, new = place(source, data), source.choice((b"\xff" * 8, bytes(8), source.randbytes(4)))
    new = new[: source.choice((1, 4, 8))]
    return data[:at] + new + data[at + len(new) :]


def insert(source: random.Random, data: bytes) -> bytes:
    at = place(source, data)
    word = source.choice((*TEXTS, "[" * 100000, '{"a":' * 5000, '"', ",", "]", "=", "null"))
    return data[:at] + word.encode(errors="surrogatepass") + data[at:]


def cut(source: random.Random, data: bytes) -> bytes:
    at = place(source, data)
    return data[:at] + data[at + source.choice((1, 8, 64, len(data))) :]


def repeat(source: random.Random, data: bytes) -> bytes:
    at, length = place(source, data), source.choice((1, 8, 64, 1000))
    return data[:at] + data[at : at + length] * 2 + data[at + length :]


def splice(source: random.Random, data: bytes) -> bytes:
    a, b = place(source, data), place(source, data)
    return data[:a] + data[b:]


def renumber(source: random.Random, data: bytes) -> bytes:
    """Another number in place of one that is written in digits."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
    if not found:
        return flip(source, data)
    number = source.choice(found)
    new = source.choice((*map(str, NUMBERS[:-2]), "1e999", "0x10", "1_0", "+1"))
    return data[: number.start()] + new.encode() + data[number.end() :]


BYTE_CHANGES = (flip, overwrite, insert, cut, repeat, splice, renumber, renumber)


def damage_json(source: random.Random, data: bytes) -> bytes:
    """Changes of the tree: values, keys, elements; sometimes of the bytes."""
    if source.random() < 0.3:
        return damage_bytes(source, data)
    tree = json.loads(data)
    for _ in range(source.choice((1, 1, 2, 3))):
        change_tree(source, tree)
    return json.dumps(tree).encode()


def change_tree(source: random.Random, tree: Any) -> None:
    """One change somewhere below `tree`, a dict or list."""
    at = tree
    while True:
        if not at:
            return
        key = source.choice(list(at)) if isinstance(at, dict) else source.randrange(len(at))
        if not isinstance(at[key], dict | list) or source.random() < 0.3:
            break
        at = at[key]
    kind = source.randrange(5)
    if kind == 0:
        del at[key]
    elif kind == 1 and isinstance(at, dict):
        at[source.choice((str(key) + "x", str(key).upper(), source.choice(TEXTS)))] = at.pop(key)
    elif kind == 2:
        other = source.choice(list(at)) if isinstance(at, dict) else source.randrange(len(at))
        at[key], at[other] = at[other], at[key]
    elif kind == 3 and isinstance(at[key], str):
        at[key] = damage_bytes(source, at[key].encode(errors="replace")).decode(errors="replace")
    else:
        at[key] = source.choice(
            (source.choice(NUMBERS), source.choice(TEXTS), source.choice(VALUES))
        )


def damage_safetensors(source: random.Random, data: bytes) -> bytes:
    """Changes of the header, its length kept right, or of any byte."""
    if source.random() < 0.3:
        return damage_bytes(source, data)
    size = int.from_bytes(data[:8], "little")
    header = damage_json(source, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
