"""Measure ondevice beside llama.cpp, OpenVINO, ONNX Runtime and ExecuTorch, in one run.

    python scripts/bench_peers.py                        everything, figures in bench_peers.json
    python scripts/bench_peers.py --rows speed --models 15m --rounds 5
    python scripts/bench_peers.py --rows half,build --keep
    python scripts/bench_peers.py --rounds 1 --only ondevice,llama.cpp-q4_0

Each peer is installed with pip into an environment of its own and converts the checkpoints with its
own tools to its own 4-bit weights, by the way its documentation recommends for CPUs; all that is
kept in --cache, so that only the first run needs a network, 12 GB and an hour and a half; a later
one takes 20 minutes. A round starts one process after another of every contestant, in an order that
turns with the rounds, all with as many threads, on the same cores and with the same prompts, and
measures what the machine can do at most. Figures are medians of rounds. Peers that cannot be had
are left out, and the reason is printed.

The goals stand last: what ondevice is to reach beside the best peer, and what it reached. STEM.json
is written after every row; with --keep, what a run does not measure is taken from it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers import plot
from peers.contestants import (
    CONTESTANTS,
    ENVIRONMENTS,
    MODELS,
    SCORED,
    SHIPPED,
    Contestant,
    Model,
    tests_of,
)
from peers.prepare import Cache, Missing, our_version, say
from peers.quality import perplexities
from peers.report import report
from peers.rows import ROWS
from peers.run import Run

from ondevice.gate.ceilings import compile_ceilings, measure_ceilings

HERE = Path(__file__).resolve().parent
SPEED, QUALITY = "speed", "perplexity"
ALL_ROWS = (SPEED, *ROWS, QUALITY)


@contextlib.contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Hold the lock of a file that other measurements of this machine hold, too."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def chosen(given: str | None, all_names: dict[str, Any], default: list[str]) -> list[Any]:
    """The values of a comma-separated list of names."""
    names = default if given is None else given.split(",")
    if unknown := [name for name in names if name not in all_names]:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(all_names)}")
    return [all_names[name] for name in names]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path.home() / ".cache" / "ondevice" / "peers"
    names = ", ".join(f"{c.name}{'' if c.default else '*'}" for c in CONTESTANTS)
    parser.add_argument("--only", metavar="NAME,...", help=f"of {names}; * only where named")
    parser.add_argument(
        "--models", metavar="NAME,...", help=f"of {', '.join(model.name for model in MODELS)}"
    )
    parser.add_argument("--rows", metavar="NAME,...", help=f"of {', '.join(ALL_ROWS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of speeds; 3 by default")
    parser.add_argument("--keep", action="store_true",
                        help="take from STEM.json what is not measured now")  # fmt: skip
    parser.add_argument(
        "--cpus", metavar="N,...", help="cores to stay on; the first two by default"
    )
    parser.add_argument("--cache", type=Path, default=home, help=f"{home} by default")
    parser.add_argument("--out", type=Path, default=Path("bench_peers"), metavar="STEM",
                        help="writes STEM.json and STEM.svg; bench_peers by default")  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="install and convert, then stop")
    shared = HERE.parent.parent / "shared"
    parser.add_argument("--shared", type=Path, default=shared,
                        help="directory with the SmolLM2 file; ../shared by default")  # fmt: skip
    parser.add_argument("--text", type=Path, help="for the perplexity; WikiText-2 in --shared")
    parser.add_argument("--lock", type=Path, metavar="FILE",
                        help="hold this file's lock in every round")  # fmt: skip
    return parser.parse_args()


def prepare(run: Run, pairs: list[tuple[Contestant, Model]]) -> list[tuple[Contestant, Model]]:
    """Install and convert everything; what can be measured."""
    ready = []
    for contestant, model in pairs:
        try:
            run.cache.artifact(contestant, model)
            run.cache.python(contestant.environment)
            ready.append((contestant, model))
        except Missing as missing:
            run.leave_out(contestant.name, model.name, missing)
    return ready


def needed(
    rows: list[str], contestants: list[Contestant], models: list[Model]
) -> list[tuple[Contestant, Model]]:
    """What is measured on what, of all rows."""
    large, real = (next(m for m in MODELS if m.name == name) for name in ("1.1b", "smollm2"))
    wanted = list(models) if SPEED in rows else []
    wanted += [large] if {"start", "half", "build"} & set(rows) else []
    wanted += [real] if {"drafts", QUALITY} & set(rows) else []
    pairs = [(c, m) for m in MODELS if m in wanted for c in contestants if c.measures(m)]
    if "shipped" in rows:
        pairs.append((SHIPPED, real))
    if QUALITY in rows:
        pairs += [(c, real) for c in scored(contestants) if (c, real) not in pairs]
    return pairs


def scored(contestants: list[Contestant]) -> list[Contestant]:
    """Whose perplexity is asked: that of everyone, and what it is to be compared with."""
    real = next(m for m in MODELS if not m.preset)
    able = [c for c in contestants if c.measures(real)]
    return [c for c in CONTESTANTS if c in able or c.name in SCORED]


def measure_speeds(
    run: Run, ready: list[tuple[Contestant, Model]], models: list[Model], rounds: int,
    lock: Path | None, save: Callable[[], None],
) -> None:  # fmt: skip
    """Every round of every model."""
    program = compile_ceilings(run.cache.root)
    for model in models:
        run.samples = [s for s in run.samples if s["model"] != model.name]
        run.ceilings = [c for c in run.ceilings if c["model"] != model.name]
        contestants = [c for c, m in ready if m is model and c in run.contestants]
        for number in range(rounds if contestants else 0):
            say(f"{model.name}, round {number + 1} of {rounds}")
            turn = number % len(contestants)
            with exclusive(lock):
                for threads in sorted({test.threads for test in tests_of(model, number)}):
                    found = measure_ceilings(program, run.cpus[:threads])
                    run.ceilings.append({"round": number, "model": model.name, **found})
                for contestant in contestants[turn:] + contestants[:turn]:
                    try:
                        run.measure(contestant, model, number)
                    except Missing as missing:
                        run.leave_out(contestant.name, model.name, missing)
        save()


def measured_names(run: Run) -> list[str]:
    """Contestants with speeds, in their order."""
    seen = {sample["contestant"] for sample in run.samples}
    return [c.name for c in CONTESTANTS if c.name in seen]


def kept(path: Path, run: Run) -> None:
    """Begin with what an earlier run wrote."""
    if not path.exists():
        sys.exit(f"there is no {path} to keep figures of: leave out --keep")
    found = json.loads(path.read_text())
    if found["version"] != our_version():
        say(f"the figures kept from {path} are of another version of ondevice")
    run.samples, run.ceilings, run.loads = found["samples"], found["ceilings"], found["loads"]
    run.rows, run.perplexity = found["rows"], found["perplexity"]


def save(run: Run, stem: Path) -> None:
    """Write STEM.json and STEM.svg, whole or not at all."""
    pairs = [(c, m) for c in CONTESTANTS for m in MODELS]
    conversions = {f"{c.artifact} {m.name}": run.cache.conversion(c, m) for c, m in pairs}
    figures = {
        "machine": platform.processor() or platform.machine(),
        "cpus": run.cpus,
        "version": our_version(),
        "samples": run.samples,
        "ceilings": run.ceilings,
        "loads": run.loads,
        "rows": run.rows,
        "perplexity": run.perplexity,
        "conversions": {name: found for name, found in conversions.items() if found},
        "environments": {e.name: run.cache.stamp(e.name) for e in ENVIRONMENTS},
        "left_out": run.left_out,
    }
    part = stem.with_name(f"{stem.name}.json.part")
    part.write_text(json.dumps(figures, indent=1) + "\n")
    part.rename(stem.with_name(f"{stem.name}.json"))
    plot.write(stem.with_name(f"{stem.name}.svg"), run.samples, measured_names(run))


def main() -> None:
    given = arguments()
    known = {c.name: c for c in CONTESTANTS}
    contestants = chosen(given.only, known, [c.name for c in CONTESTANTS if c.default])
    models = chosen(given.models, {m.name: m for m in MODELS}, [m.name for m in MODELS])
    rows = chosen(given.rows, {name: name for name in ALL_ROWS}, list(ALL_ROWS))
    cores = sorted(os.sched_getaffinity(0))[:2] if given.cpus is None else given.cpus.split(",")
    run = Run(Cache(given.cache, given.shared), list(map(int, cores)), contestants)
    if given.keep:
        kept(given.out.with_name(f"{given.out.name}.json"), run)
    ready = prepare(run, needed(rows, contestants, models))
    if given.prepare:
        return
    if SPEED in rows:
        measure_speeds(run, ready, models, given.rounds, given.lock, lambda: save(run, given.out))
    for name in rows:
        if name in ROWS:
            say(f"row {name}")
            with exclusive(given.lock):
                run.rows[name] = ROWS[name](run)
            save(run, given.out)
    if QUALITY in rows:
        text = given.text or given.shared / "text" / "wikitext2.test.raw"
        real = next(m for m in MODELS if not m.preset)
        run.perplexity = perplexities(run, scored(contestants), real, text)
    save(run, given.out)
    print(report(run, measured_names(run)))


if __name__ == "__main__":
    main()
