"""Compare the C tokenizer with the `tokenizers` library in full, and time both on one thread.

    python scripts/tokenizer_check.py [--strings 100000] [--seed 0] [DIRECTORY ...]

Each DIRECTORY holds a tokenizer.json; without any, the bundled one and those beside the repository
(../shared/tokenizers). Prints one row per tokenizer and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "tests" / "tokenizer"))

from strings import unicode_strings  # noqa: E402
from tokenizers import Tokenizer as Library  # noqa: E402

from ondevice.codegen.link import compile_runtime  # noqa: E402
from ondevice.runtime.tokenizer import Tokenizer  # noqa: E402
from ondevice.targets import load  # noqa: E402
from ondevice.tokenizer import compile_tokenizer  # noqa: E402

HEAD = (
    "tokenizer     strings  lines  ids  texts  streams   KiB  lines MB/s  ratio  text MB/s  ratio"
)


def best_seconds(work: object, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


def check_strings(
    library: Library, native: Tokenizer, strings: int, seed: int
) -> tuple[int, int, int]:
    """How many strings differ in their ids, their decoded text, or their stream of pieces."""
    source = random.Random(seed)
    ids = texts = streams = 0
    for text in unicode_strings(seed, strings):
        tokens = native.encode(text)
        ids += tokens != library.encode(text).ids
        tokens += [source.randrange(native.vocab_size) for _ in range(3)]
        whole = native.decode(tokens)
        texts += whole != library.decode(tokens)
        stream = native.stream()
        pieces = [stream.add(t) for t in tokens] + [stream.finish()]
        streams += "".join(pieces) != whole
    return ids, texts, streams


def check(directory: Path, runtime: Path, lines: list[str], strings: int, seed: int) -> bool:
    """Print the row of one tokenizer; true if all is equal."""
    config = directory / "tokenizer_config.json"
    compiled = compile_tokenizer(directory / "tokenizer.json", config if config.is_file() else None)
    native = Tokenizer(runtime, compiled.data, compiled.template)
    library = Library.from_file(str(directory / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    ids, texts, streams = check_strings(library, native, strings, seed)
    ids += sum(native.encode(line) != library.encode(line).ids for line in lines)
    row = f"{directory.name:12} {strings:8} {len(lines):6} {ids:4} {texts:6} {streams:8}"
    row += f" {len(compiled.data) // 1024:5}"
    for pieces in (lines, ["".join(lines)]):
        size = sum(len(p.encode()) for p in pieces) / 1e6
        if size == 0:
            continue
        theirs = best_seconds(lambda p=pieces: [library.encode(text) for text in p])
        ours = best_seconds(lambda p=pieces: [native.encode(text) for text in p])
        row += f" {size / ours:11.1f} {theirs / ours:6.1f}"
    print(row, flush=True)
    for note in compiled.notes:
        print(f"    {note}")
    return not (ids or texts or streams)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    beside = sorted(p.parent for p in (SHARED / "tokenizers").glob("*/tokenizer.json"))
    directories = chosen.directories or [ROOT / "recipes" / "stories260K", *beside]
    files = sorted((SHARED / "text").glob("*.raw")) + sorted((SHARED / "text").glob("tiny*.txt"))
    lines = [line for f in files for line in f.read_text("utf-8").splitlines(keepends=True)]
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder, "libondevice.so")
        runtime.write_bytes(compile_runtime(load("host")))
        equal = [check(d, runtime, lines, chosen.strings, chosen.seed) for d in directories]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
