"""The file of a compiled chat template; the same layout in C is native/template_format.h."""

from __future__ import annotations

import itertools
import struct

from ondevice.tokenizer.components import TokenizerError
from ondevice.tokenizer.layout import Text
from ondevice.tokenizer.template_table import (
    DATE,
    ROLES,
    START,
    Ending,
    Place,
    Row,
    Table,
    unknown_directives,
)

MAGIC = b"ODCHATTP"
VERSION = 1
_HEADER = struct.Struct("<8sIIIIII")
_PRESENT, _NO_BLANK, _REFUSE_MARKER = 1, 2, 4
_DATE_BYTE = b"\xff"  # occurs in no UTF-8


def pack_table(table: Table) -> bytes:
    """The rows by place, the endings, the conflicts, then the text that all refer to.

    Raises TokenizerError for a date that the runtime cannot write.
    """
    text = Text()
    thinking = [True, False] if any(not p.thinking for p in table.rows) else [True]
    rows, endings, conflicts = bytearray(), bytearray(), bytearray()
    for mode, previous, role in itertools.product(thinking, (*ROLES, START), ROLES):
        for context in range(8):
            last, before, after = (bool(context & bit) for bit in (1, 2, 4))
            place = Place(previous, role, last, before, after, mode)
            rows += _pack_row(table.rows.get(place), text)
    for mode, role, user, generate in itertools.product(
        thinking, ROLES, (False, True), (False, True)
    ):
        ending = table.endings.get(Ending(role, user, generate, mode))
        endings += struct.pack("<III", *_literal(ending or "", text), ending is not None)
    for group, conflict in enumerate(table.conflicts):
        for role, marker in conflict:
            fields = (*text.add(marker.encode()), ROLES.index(role), group)
            conflicts += struct.pack("<IIII", *fields)
    data = text.data()
    size = _HEADER.size + len(rows) + len(endings) + len(conflicts) + len(data)
    header = _HEADER.pack(MAGIC, VERSION, size, len(thinking), len(conflicts) // 16, len(data), 0)
    return header + bytes(rows) + bytes(endings) + bytes(conflicts) + data


def _pack_row(row: Row | None, text: Text) -> bytes:
    if row is None:
        return bytes(24)
    flags = _PRESENT | (0 if row.blank else _NO_BLANK)
    flags |= _REFUSE_MARKER if row.marker and row.after is None else 0
    before, marker = _literal(row.before, text), text.add(row.marker.encode())
    return struct.pack("<IIIIHHHH", *before, *marker, flags, row.strip or 0, row.after or 0, 0)


def _literal(literal: str, text: Text) -> tuple[int, int]:
    """Text in which dates are marked."""
    if unknown := unknown_directives(literal):
        raise TokenizerError(f"the chat template writes the date with {unknown[0]}")
    return text.add(literal.encode().replace(DATE.encode(), _DATE_BYTE))
