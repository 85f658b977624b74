"""Resuming the weights of a killed build: a log beside the unfinished file.

    ondevice-weights 1 <inputs>
    note <text>                    what the build wants to know again of the tensors before
    chunk <sha256>                 of the next 4 MiB of the file

`inputs` is a hash of all that determines the file's bytes; a log of other inputs is not followed.
A line is appended after its chunk has been written, and a line without its newline does not
count. Nothing else rests on the order in which a dying system wrote things down: every chunk is
read and hashed again before a build goes on behind it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SYNC_CHUNKS = 16  # chunks between flushes to the disk: what a power failure may cost
MAGIC = "ondevice-weights 1"


class ResumeLog:
    """The log of one weights file; `chunks` and `notes` are what an earlier build left.

    Where `inputs` is empty, nothing that was left is taken up.
    """

    def __init__(self, path: Path, inputs: str) -> None:
        self.path = path
        self.chunks: list[str] = []
        self.notes: list[str] = []
        self._begin = f"{MAGIC} {inputs}\n"
        self._file = -1
        if inputs:
            self._read()

    def start(self, chunks: int) -> None:
        """Begin a log that holds the first so many chunks, and all notes if there are any.

        The old one stays until the new one has replaced it.
        """
        del self.chunks[chunks:]
        if not self.chunks:
            self.notes.clear()
        new = self.path.with_name(self.path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._file = os.open(new, flags, 0o666)
        lines = [f"note {note}\n" for note in self.notes]
        lines += [f"chunk {chunk}\n" for chunk in self.chunks]
        self._append(self._begin + "".join(lines))
        os.replace(new, self.path)

    def add_chunk(self, sha256: str) -> None:
        self.chunks.append(sha256)
        self._append(f"chunk {sha256}\n")

    def add_note(self, text: str) -> None:
        """A line of text, without a newline in it."""
        self.notes.append(text)
        self._append(f"note {text}\n")

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> None:
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return
        if not text.startswith(self._begin):
            return
        for line in text[len(self._begin) :].split("\n")[:-1]:
            kind, _, rest = line.partition(" ")
            if kind in ("chunk", "note"):
                (self.chunks if kind == "chunk" else self.notes).append(rest)

    def _append(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._file, data) :]


def whole_chunks(
    file: int, chunks: list[str], chunk_bytes: int, file_bytes: int, header: bytes
) -> int:
    """How many of `chunks`, from the first, the open file still holds as their hashes say.

    `header` stands in for that of the file, which is written again at the end.
    """
    for number, expected in enumerate(chunks):
        start = number * chunk_bytes
        size = min(chunk_bytes, file_bytes - start)
        data = os.pread(file, size, start) if size > 0 else b""
        if start == 0:
            data = header + data[len(header) :]
        if len(data) != size or hashlib.sha256(data).hexdigest() != expected:
            return number
    return len(chunks)
