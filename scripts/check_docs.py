"""Run the code blocks of the documentation, so that they stay true.

    python scripts/check_docs.py                     run every block of every document
    python scripts/check_docs.py README.md           run those of one
    python scripts/check_docs.py --print test README.md

A fence says what happens to its block: `sh` and `python` are run, in order, in an empty directory
per document; `text` is for reading. `sh NAME` is a block that CI runs itself, by `--print NAME`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300


@dataclass(frozen=True)
class Block:
    """A fenced code block; `name` is the word behind its language, or empty."""

    path: Path
    line: int
    language: str
    name: str
    code: str


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document. Raises SystemExit on a fence that is not closed."""
    found = []
    opened: tuple[int, str] | None = None
    code: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.fullmatch(r"```(.*)", line)
        if fence is None:
            code.append(line)
        elif opened is None:
            opened, code = (number, fence[1].strip()), []
        else:
            start, info = opened
            language, _, name = info.partition(" ")
            found.append(Block(path, start, language, name, "\n".join(code) + "\n"))
            opened = None
    if opened is not None:
        sys.exit(f"{path}:{opened[0]}: this code block is not closed")
    return found


def command(block: Block) -> list[str] | None:
    """How to run a block, or None where it is for reading or for CI."""
    if block.language == "text" or (block.language == "sh" and block.name):
        return None
    if block.language == "sh":
        return ["bash", "-euo", "pipefail", "-c", block.code]
    if block.language == "python":
        return [sys.executable, "-P", "-c", block.code]
    sys.exit(f"{block.path}:{block.line}: mark this block sh, python or text")


def run_document(path: Path) -> int:
    """Run the blocks of a document in order; returns how many were run."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    count = 0
    with tempfile.TemporaryDirectory() as scratch:
        for block in blocks(path):
            arguments = command(block)
            if arguments is None:
                continue
            print(f"{path.relative_to(ROOT)}:{block.line}", flush=True)
            done = subprocess.run(
                arguments,
                cwd=scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            if done.returncode != 0:
                print(block.code, done.stdout, done.stderr, sep="\n", file=sys.stderr)
                sys.exit(f"{path}:{block.line}: this block failed (exit {done.returncode})")
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the code blocks of the documentation.")
    parser.add_argument("--print", dest="name", help="print the block of this name instead")
    parser.add_argument("documents", nargs="*", type=Path)
    options = parser.parse_args()
    chosen = [path.resolve() for path in options.documents] or documents()
    if options.name:
        named = [b for path in chosen for b in blocks(path) if b.name == options.name]
        if len(named) != 1:
            sys.exit(f"{len(named)} blocks are named {options.name!r}, not one")
        print(named[0].code, end="")
    else:
        print(f"{sum(map(run_document, chosen))} code blocks run")


if __name__ == "__main__":
    main()
