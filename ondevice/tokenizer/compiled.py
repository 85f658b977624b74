"""A compiled tokenizer as a value and as bytes, and all that these bytes depend on."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

TEMPLATE_FILE = "chat_template.jinja"  # where newer checkpoints keep the template


@dataclass(frozen=True)
class CompiledTokenizer:
    """`data` is tokenizer.bin; `template` the chat template, None: raw prompts only.

    `turn_ends` are the tokens with which the template ends an answer; `notes` are sentences for
    the build's report, such as why there is no template.
    """

    data: bytes
    template: bytes | None
    turn_ends: tuple[int, ...]
    notes: tuple[str, ...]

    def pack(self) -> bytes:
        """As one string of bytes, to be kept between builds."""
        rest = (self.turn_ends, self.notes, None if self.template is None else len(self.template))
        head = json.dumps(rest).encode()
        return struct.pack("<I", len(head)) + head + (self.template or b"") + self.data


def unpack(packed: bytes) -> CompiledTokenizer:
    """The inverse of `CompiledTokenizer.pack`."""
    start = 4 + struct.unpack_from("<I", packed)[0]
    turn_ends, notes, length = json.loads(packed[4:start])
    end = start + (length or 0)
    template = None if length is None else packed[start:end]
    return CompiledTokenizer(packed[end:], template, tuple(turn_ends), tuple(notes))


def dependencies(
    tokenizer_json: Path, tokenizer_config: Path | None, vocab_size: int
) -> list[str | bytes]:
    """What decides the bytes: the files, the compiler's source, the libraries that it asks."""
    template = tokenizer_json.parent / TEMPLATE_FILE
    files = [tokenizer_json, tokenizer_config, template if template.is_file() else None]
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return [
        "tokenizer",
        *(b"-" if file is None else b"+" + file.read_bytes() for file in files),
        str(vocab_size),
        *(source.read_bytes() for source in sources),
        *(f"{name} {version(name)}" for name in ("tokenizers", "jinja2", "numpy")),
    ]
