"""Measure ondevice beside llama.cpp, OpenVINO and ONNX Runtime, on the same checkpoints in one run.

    python scripts/bench_peers.py                        everything, figures in bench_peers.json
    python scripts/bench_peers.py --models 15m --rounds 3
    python scripts/bench_peers.py --only ondevice,llama.cpp-q4_0 --perplexity

Each peer is installed with pip into an environment of its own and converts the checkpoints with its
own tools; all that is kept in --cache, so that only the first run needs a network, 11 GB and an
hour. A round starts one process after another of every contestant, in an order that turns with the
rounds, all on the same cores, and measures what the machine can do at most. Figures are medians of
rounds. Peers that cannot be had are left out, and the reason is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import plot, table
from peers.contestants import (
    CONTESTANTS,
    CONTEXT_TOKENS,
    MODELS,
    Contestant,
    Model,
    Test,
    tests_of,
)
from peers.prepare import Cache, Missing, say

from ondevice.gate.ceilings import compile_ceilings, measure_ceilings

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "peers"
CHILD_TIMEOUT_S = 1200
PERPLEXITY_BYTES, PERPLEXITY_WINDOW = 420_000, 1024


@dataclass
class Run:
    """What was measured so far."""

    cache: Cache
    cpus: list[int]
    samples: list[table.Sample] = field(default_factory=list)
    ceilings: list[dict[str, Any]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def child(self, contestant: Contestant, model: Model, job: dict[str, Any]) -> dict[str, Any]:
        """What run_PEER.py says of a job. Raises Missing."""
        path = self.cache.artifact(contestant, model)
        job = {"path": str(path), "context": CONTEXT_TOKENS, "options": contestant.options, **job}
        python = self.cache.python(contestant.environment)
        program = PROGRAMS / f"run_{contestant.program}.py"
        try:
            done = subprocess.run(
                [python, program, json.dumps(job)],
                capture_output=True,
                text=True,
                cwd=self.cache.root / "logs",  # where no directory is named like a package
                timeout=CHILD_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"{program.name} took over {CHILD_TIMEOUT_S} s") from None
        if done.returncode:
            raise Missing(f"{program.name} failed with {done.returncode}: {done.stderr[-600:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def measure(self, contestant: Contestant, model: Model, number: int) -> None:
        """The tests of one contestant in one round, a process for each number of threads."""
        tests = tests_of(model)
        for threads in sorted({test.threads for test in tests}, reverse=True):
            chosen = [test for test in tests if test.threads == threads]
            job = {
                "threads": threads,
                "cpus": self.cpus[:threads],
                "tests": list(map(spec, chosen)),
            }
            found = self.child(contestant, model, job)
            about = {"round": number, "model": model.name, "contestant": contestant.name}
            self.loads.append({**about, "threads": threads, **without(found, "tests")})
            size = streamed_bytes(self.cache.artifact(contestant, model))
            for name, figures in found["tests"].items():
                self.samples.append({**about, "test": name, "streamed_bytes": size, **figures})

    def leave_out(self, contestant: Contestant, model: Model, reason: Missing) -> None:
        """Say it once for each reason."""
        if str(reason) not in self.left_out.values():
            say(f"without {contestant.name} on {model.name}: {reason}")
        self.left_out[f"{contestant.name} on {model.name}"] = str(reason)


def spec(test: Test) -> dict[str, Any]:
    return {"name": test.name, "prompt": test.prompt, "generate": test.generate, "reps": test.reps}


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def streamed_bytes(artifact: Path) -> int:
    """Bytes of the weights that each token is multiplied with; 0 where the files do not say."""
    if artifact.suffix == ".gguf":
        found: int = json.loads(artifact.with_suffix(".json").read_text())["streamed_bytes"]
        return found
    if not (artifact / "manifest.json").exists():
        return 0
    weights = json.loads((artifact / "manifest.json").read_text())["weights"]["tensors"]
    sizes = {tensor["name"]: tensor["size_bytes"] for tensor in weights}
    tied = "head.weight" not in sizes
    return sum(size for name, size in sizes.items() if tied or name != "embed.weight")


@contextlib.contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Hold the lock of a file that other measurements of this machine hold, too."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def perplexities(run: Run, contestants: list[Contestant], text: Path) -> dict[str, float]:
    """Of the real model, by contestant; kept beside the artifact."""
    model = next(model for model in MODELS if not model.preset)
    everyone = {c.artifact: c for c in contestants}
    windows = run.cache.root / f"windows-{text.stem}.json"
    found = {}
    for name, contestant in everyone.items():
        try:
            artifact = run.cache.artifact(contestant, model)
            folder = artifact.parent if artifact.is_file() else artifact
            kept = folder.with_name(f"{model.name}-{windows.stem}.ppl")
            if not kept.exists():
                if not windows.exists():
                    write_windows(run, model, text, windows)
                say(f"perplexity of {name}")
                job = {"threads": len(run.cpus), "cpus": run.cpus, "windows": str(windows)}
                kept.write_text(str(run.child(contestant, model, job)["perplexity"]))
            found[name] = float(kept.read_text())
        except Missing as missing:
            run.leave_out(contestant, model, missing)
    return found


def write_windows(run: Run, model: Model, text: Path, out: Path) -> None:
    """Token windows of the first bytes of a text, as `ondevice eval` cuts them."""
    if not text.exists():
        raise Missing(f"no text at {text}: give one with --text")
    program = [PROGRAMS / "windows.py", run.cache.checkpoint(model), text]
    sizes = map(str, (PERPLEXITY_BYTES, PERPLEXITY_WINDOW))
    done = subprocess.run([sys.executable, *program, *sizes], capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"windows.py failed: {done.stderr[-600:]}")
    out.write_text(done.stdout)


def report(run: Run, names: list[str], perplexity: dict[str, float]) -> str:
    """Everything as markdown."""
    ours = [name for name in table.OURS if name in names]
    ratios = [f"{name} / best" for name in ours]
    speeds = list(table.speed_rows(run.samples, names))
    costs = list(table.cost_rows(run.samples, names))
    fractions = list(table.ceiling_rows(run.samples, run.ceilings, names))
    parts = []
    if run.samples:
        parts = [
            "Tokens per second, medians, and ours divided by the best peer's:",
            table.markdown(["model", "test", *names, *ratios, "best"], speeds),
            "CPU milliseconds per token, of all threads:",
            table.markdown(["model", "test", *names], costs),
            "Percent of the ceilings measured in the same round (prefill: int8, decode: DRAM):",
            table.markdown(["model", "test", *names], fractions),
            "Ceilings, least to most of the rounds:",
            table.markdown(*table.ceiling_table(run.ceilings)),
        ]
    if perplexity:
        rows = [[name, f"{value:.3f}"] for name, value in perplexity.items()]
        parts += ["Perplexity of SmolLM2:", table.markdown(["weights", "perplexity"], rows)]
    used = {c.environment for c in CONTESTANTS if c.name in names} - {""}
    for name in sorted(used):
        stamp = run.cache.stamp(name)
        parts.append(" ".join([f"{name}:", *stamp["packages"], stamp["note"]]).strip())
    return "\n\n".join(parts)


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
    parser.add_argument("--rounds", type=int, default=5, help="5 by default; 0 measures no speed")
    parser.add_argument(
        "--cpus", metavar="N,...", help="cores to stay on; the first two by default"
    )
    parser.add_argument("--cache", type=Path, default=home, help=f"{home} by default")
    parser.add_argument("--out", type=Path, default=Path("bench_peers"), metavar="STEM",
                        help="writes STEM.json and STEM.svg; bench_peers by default")  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="install and convert, then stop")
    parser.add_argument("--perplexity", action="store_true", help="of SmolLM2, minutes per peer")
    shared = HERE.parent.parent / "shared"
    parser.add_argument("--shared", type=Path, default=shared,
                        help="directory with the SmolLM2 file; ../shared by default")  # fmt: skip
    parser.add_argument("--text", type=Path, help="for the perplexity; WikiText-2 in --shared")
    parser.add_argument("--lock", type=Path, metavar="FILE",
                        help="hold this file's lock in every round")  # fmt: skip
    return parser.parse_args()


def prepare(
    run: Run, contestants: list[Contestant], models: list[Model]
) -> list[tuple[Contestant, Model]]:
    """Install and convert everything; what can be measured."""
    ready = []
    for model in models:
        for contestant in contestants:
            try:
                run.cache.artifact(contestant, model)
                run.cache.python(contestant.environment)
                ready.append((contestant, model))
            except Missing as missing:
                run.leave_out(contestant, model, missing)
    return ready


def measure_all(
    run: Run, ready: list[tuple[Contestant, Model]], rounds: int, lock: Path | None
) -> None:
    """Every round of every model."""
    program = compile_ceilings(run.cache.root)
    for model in MODELS:
        contestants = [c for c, m in ready if m is model]
        for number in range(rounds if contestants else 0):
            say(f"{model.name}, round {number + 1} of {rounds}")
            turn = number % len(contestants)
            with exclusive(lock):
                for threads in sorted({test.threads for test in tests_of(model)}):
                    found = measure_ceilings(program, run.cpus[:threads])
                    run.ceilings.append({"round": number, "model": model.name, **found})
                for contestant in contestants[turn:] + contestants[:turn]:
                    try:
                        run.measure(contestant, model, number)
                    except Missing as missing:
                        run.leave_out(contestant, model, missing)


def main() -> None:
    given = arguments()
    contestants = chosen(
        given.only, {c.name: c for c in CONTESTANTS}, [c.name for c in CONTESTANTS if c.default]
    )
    models = chosen(given.models, {m.name: m for m in MODELS}, [m.name for m in MODELS])
    cpus = (
        list(map(int, given.cpus.split(","))) if given.cpus else sorted(os.sched_getaffinity(0))[:2]
    )
    run = Run(Cache(given.cache, given.shared), cpus)
    ready = prepare(run, contestants, models)
    if given.prepare:
        return
    measure_all(run, ready, given.rounds, given.lock)
    text = given.text or given.shared / "text" / "wikitext2.test.raw"
    perplexity = perplexities(run, contestants, text) if given.perplexity else {}
    names = [c.name for c in contestants if any(s["contestant"] == c.name for s in run.samples)]
    print(report(run, names, perplexity))
    notes = {name: run.cache.stamp(name) for name in {c.environment for c in contestants} - {""}}
    conversions = {f"{c.artifact} {m.name}": run.cache.conversion(c, m) for c, m in ready}
    figures = {"machine": platform.processor() or platform.machine(), "cpus": cpus,
               "samples": run.samples, "ceilings": run.ceilings, "loads": run.loads,
               "conversions": conversions, "perplexity": perplexity, "environments": notes,
               "left_out": run.left_out}  # fmt: skip
    given.out.with_name(f"{given.out.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot.write(given.out.with_name(f"{given.out.name}.svg"), run.samples, names)


if __name__ == "__main__":
    main()
