"""Damage files and read them: each must be read, or be refused by one sentence.

    python scripts/fuzz.py --minutes 10
    python scripts/fuzz.py tokenizer bundle --count 500 --seed 7
    python scripts/fuzz.py tokenizer --seed 7123 --count 1 --traceback

Every input follows from its reader's name and its number alone. An input is a finding where reading
it ends in anything but an OndeviceError of one short line, takes more than 20 seconds of processor
time, or wants more than 2 GiB. The readers written in C have drivers of their own in tests/, which
run under sanitizers.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from fuzzing.readers import READERS, Reader

from ondevice.errors import GraphError, KernelError, OndeviceError

SECONDS, BYTES = 20, 2 << 30  # what one input may take
LETTERS = 2000  # of an error's message


class TooSlow(BaseException):
    """More than SECONDS of processor time; no reader may catch it."""


def out_of_time(*_: object) -> None:
    raise TooSlow


def problem(reader: Reader, folder: Path) -> BaseException | None:
    """What is wrong with how `reader` took the files, or None."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(folder)
    except OndeviceError as error:
        lines = 3 if isinstance(error, GraphError | KernelError) else 1  # they show the place
        if str(error).count("\n") >= lines or len(str(error)) > LETTERS:
            return error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def fuzz(reader: Reader, seeds: Iterator[int], trace: bool) -> tuple[int, Counter[str]]:
    """(inputs, findings by kind); prints the first of each kind."""
    inputs, found = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        reader.prepare(folder)
        reader.read(folder)  # which takes what is intact
        for seed in seeds:
            source = random.Random(f"{reader.name} {seed}")
            pattern = source.choice(list(reader.files))
            path = source.choice(sorted(folder.glob(pattern)))
            intact = path.read_bytes()
            path.write_bytes(reader.files[pattern](source, intact))
            error = problem(reader, folder)
            if error is not None:
                kind = describe(error)
                if trace:
                    traceback.print_exception(error)
                elif not found[kind]:
                    print(f"{reader.name}, seed {seed}, {path.name}: {kind}", flush=True)
                found[kind] += 1
            path.write_bytes(intact)
            inputs += 1
    return inputs, found


def describe(error: BaseException) -> str:
    """The exception and the last of our lines that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ondevice" in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {at}: {str(error)[:160]!r}"


def seeds_until(first: int, end: float) -> Iterator[int]:
    for seed in count(first):
        if time.monotonic() >= end:
            return
        yield seed


def limit_memory() -> None:
    """Let this process have BYTES more of address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Damage files and read them.")
    names = [reader.name for reader in READERS]
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(names))
    parser.add_argument("--minutes", type=float, help="for all readers together")
    parser.add_argument("--count", type=int, default=1000, help="inputs of the cheapest readers")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--traceback", action="store_true", help="of every finding")
    options = parser.parse_args(arguments)
    unknown = set(options.readers) - set(names)
    if unknown:
        parser.error(f"no reader {unknown.pop()!r}; there are {', '.join(names)}")
    chosen = [r for r in READERS if not options.readers or r.name in options.readers]
    signal.signal(signal.SIGPROF, out_of_time)
    limit_memory()
    findings = 0
    for reader in chosen:
        begin = time.monotonic()
        seeds: Iterator[int] = iter(
            range(options.seed, options.seed + max(1, options.count // reader.cost))
        )
        if options.minutes:
            seeds = seeds_until(options.seed, begin + 60 * options.minutes / len(chosen))
        inputs, found = fuzz(reader, seeds, options.traceback)
        seconds = time.monotonic() - begin
        print(f"{reader.name}: {inputs} inputs in {seconds:.1f} s, {found.total()} findings")
        findings += found.total()
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
