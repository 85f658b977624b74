# ruff: noqa: RUF001

"""Texts that tokenizers get wrong: generated Unicode, from words to single odd code points."""

from __future__ import annotations

import random
from collections.abc import Iterator

_WORDS = (
    "the The THE a I hello world don't we'll they've it's I'm he'd you're DON'T WE'LL 'S 'ſ 'Tis "
    "naïve café Zürich größer straße Ελλάδα Москва שלום مرحبا नमस्ते ภาษาไทย 日本語 中文 한국어 "
    "http://example.com/a?b=c&d=1 x1y2 3.14159 1,000,000 ½ Ⅷ ² ٣٤٥ １２３ foo_bar CamelCase <b> "
    "</s> <s> <unk> <0x0A> <|endoftext|> <|im_start|> <|im_end|> <think> <|user|> ▁ ▁▁ ▁a Ġ Ċ"
).split()
_SPACES = (
    *(" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\r", "\v", "\f", "\x1c", "\x85"),
    *("\u00a0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\u180e", "\u200b"),
)
_PIECES = (
    *("e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u0301", "\u1100\u1161\u11a8", "\uac00\u11a8"),
    *("\u0958", "\u1e9b\u0323", "\u0344", "\u212b", "\u2126", "\u0f73", "\U0001d15e", "\uf900"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "\u200d"),
    *(
        "👍🏽",
        "\ufeff",
        "\ufffd",
        "\ufffe",
        "\u0000",
        "\u007f",
        "\U0010ffff",
        "\U000e0041",
        "ſ",
        "K",
    ),
    *(
        "!",
        "?!",
        "...",
        "—",
        "«",
        "“”",
        "$",
        "€",
        "+",
        "=",
        "^",
        "`",
        "~",
        "|",
        "\\",
        "/",
        "'",
        '"',
    ),
)
_RANGES = (
    *((0x20, 0x7F), (0x20, 0x7F), (0x80, 0x250), (0x250, 0x400), (0x300, 0x370), (0x400, 0x530)),
    *((0x590, 0x800), (0x900, 0xE80), (0x1000, 0x1200), (0x1100, 0x1200), (0x1E00, 0x2000)),
    *((0x2000, 0x2C00), (0x3000, 0x3400), (0x4E00, 0xA000), (0xA000, 0xD7FF), (0xE000, 0x10000)),
    *((0x10000, 0x12000), (0x1D000, 0x1D800), (0x1F000, 0x1FB00), (0x20000, 0x32000)),
    (0xE0000, 0x110000),
)


def unicode_strings(seed: int, count: int) -> Iterator[str]:
    """`count` strings of up to about 60 characters."""
    source = random.Random(seed)
    for _ in range(count):
        yield "".join(_piece(source) for _ in range(source.randrange(1, 16)))


def _piece(source: random.Random) -> str:
    kind = source.random()
    if kind < 0.35:
        return source.choice(_WORDS)
    if kind < 0.6:
        return source.choice(_SPACES)
    if kind < 0.75:
        return source.choice(_PIECES)
    if kind < 0.8:
        return str(source.randrange(10 ** source.randrange(1, 9)))
    if kind < 0.83:
        return source.choice(_SPACES) * source.randrange(2, 40)
    if kind < 0.86:
        return chr(source.choice((0x61, 0xE9, 0x4E00, 0x301))) * source.randrange(2, 60)
    low, high = source.choice(_RANGES)
    letters = [chr(source.randrange(low, high)) for _ in range(source.randrange(1, 6))]
    return "".join(letters)
