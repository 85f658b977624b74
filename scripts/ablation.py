"""What each pass and each idea is worth: speed with one of them switched off at a time.

    python scripts/ablation.py                        a random checkpoint of 160 million weights
    python scripts/ablation.py --model DIR --rounds 7 --json ablation.json

The checkpoint is built once as the compiler does it, once for each pass that is switched off
(`passes.disable` in a recipe) and once with keys and values that are no bytes. Every round measures
all arms one after another, in an order that turns with the rounds; figures are medians of rounds.
Prompts are random tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ondevice import targets
from ondevice.build import build
from ondevice.errors import RuntimeFailure
from ondevice.gate.bench import generate_s, prompt_s
from ondevice.recipe import edit, load_recipe
from ondevice.runtime.engine import Engine
from ondevice.runtime.sampling import Sampling

RANDOM = Path(__file__).with_name("random_checkpoint.py")
PASSES = ("fold", "narrow", "fuse", "select", "tile", "plan_memory", "schedule")
FLOAT_KV = "kv.dtype=f16"
LENGTHS = (1, 7, 33, 511, 513)
BASE = "everything on"
DISABLED = {name: f"passes.disable={name}" for name in PASSES}
SETTINGS = ("", *DISABLED.values(), FLOAT_KV)  # one bundle each
NO_STOP = Sampling(stop_tokens=())


@dataclass(frozen=True)
class Arm:
    """One way to run: which bundle, which options of the engine, who drives the steps."""

    name: str
    setting: str = ""  # of the recipe
    options: dict[str, Any] = field(default_factory=dict)
    from_python: bool = False  # each step by a call of its own


def arms(threads: int) -> list[Arm]:
    """The base first; drafts are off but where named, for made-up text repeats itself."""
    found = [Arm(BASE), *(Arm(f"without {p}", setting) for p, setting in DISABLED.items())]
    found.append(Arm("keys and values as f16", FLOAT_KV))
    found.append(Arm("decode loop in Python", from_python=True))
    found.append(Arm("with drafts", options={"draft_tokens": 0}))
    found += [Arm(f"{n} threads", options={"threads": n}) for n in (1, 2) if n != threads]
    variants = targets.load("host").cpu.variants
    found += [Arm(f"variant {v.name}", options={"variant": v.name}) for v in variants]
    return found


def build_all(model: str, settings: Sequence[str], folder: Path) -> dict[str, Path]:
    """A bundle for each of SETTINGS."""
    bundles = {}
    for setting, path in places(folder).items():
        recipe = load_recipe(model, settings=settings)
        if setting:
            recipe = edit(recipe, setting)
        bundles[setting] = build(recipe, path)
    return bundles


def places(folder: Path) -> dict[str, Path]:
    """Where the bundle of each of SETTINGS is."""
    return {s: folder / f"{s.rpartition('=')[2] or 'base'}.bundle" for s in SETTINGS}


def step_by_step_s(conversation: Any, tokens: list[int], count: int) -> float:
    """Seconds to generate `count` tokens with a submit for each."""
    started = perf_counter()
    for _ in range(count):
        list(conversation.generate_tokens(tokens, 1, NO_STOP))
        tokens = []  # go on
    return perf_counter() - started


class Bench:
    """Draws new tokens for every run, so that no cache of prompts helps."""

    def __init__(self, bundles: dict[str, Path], threads: int, prompt: int, generate: int) -> None:
        self.bundles, self.threads = bundles, threads
        self.prompt, self.generate = prompt, generate
        self.random = np.random.default_rng(0)

    def open(self, arm: Arm) -> Engine:
        options = {"threads": self.threads, "draft_tokens": -1, "conversations": 1, **arm.options}
        return Engine(self.bundles[arm.setting], **options)

    def tokens(self, engine: Engine, count: int) -> list[int]:
        found: list[int] = self.random.integers(engine.info.vocab_size, size=count).tolist()
        return found

    def measure(self, arm: Arm) -> dict[str, float]:
        """Tokens per second of a prompt and of generation, after a run that is not measured."""
        run_s = step_by_step_s if arm.from_python else generate_s
        with self.open(arm) as engine, engine.conversation() as conversation:
            for _ in range(2):
                prefill_s = prompt_s(conversation, self.tokens(engine, self.prompt))
                conversation.rewind(0)
                decode_s = run_s(conversation, self.tokens(engine, 1), self.generate)
                conversation.rewind(0)
        return {"prefill": self.prompt / prefill_s, "decode": self.generate / decode_s}

    def lengths(self) -> dict[int, tuple[float, float]]:
        """Milliseconds of a prompt as long as it is, and padded to the next power of two."""
        found = {}
        with self.open(Arm(BASE)) as engine, engine.conversation() as conversation:
            most = engine.info.context_tokens - 1
            for length in LENGTHS:
                padded = 1 << (length - 1).bit_length()
                times = []
                for count in (length, padded, length, padded):
                    if count > most:
                        break
                    times.append(1e3 * prompt_s(conversation, self.tokens(engine, count)))
                    conversation.rewind(0)
                else:
                    found[length] = (times[2], times[3])
        return found


def medians(samples: Sequence[dict[Any, float]]) -> dict[Any, float]:
    return {key: statistics.median(s[key] for s in samples) for key in samples[0]}


def run(bench: Bench, chosen: Sequence[Arm], rounds: int) -> dict[str, Any]:
    """Medians for each arm that this CPU can run, and for each length."""
    samples: dict[str, list[dict[Any, float]]] = {}
    exact: list[dict[Any, float]] = []
    padded: list[dict[Any, float]] = []
    for number in range(rounds):
        turn = number % len(chosen)
        for arm in [*chosen[turn:], *chosen[:turn]]:
            try:
                samples.setdefault(arm.name, []).append(bench.measure(arm))
            except RuntimeFailure as error:
                if "variant" not in arm.options:
                    raise
                print(f"left out {arm.name}: {error}", file=sys.stderr)
                samples.pop(arm.name, None)
        times = bench.lengths()
        exact.append({length: pair[0] for length, pair in times.items()})
        padded.append({length: pair[1] for length, pair in times.items()})
    speeds = {arm.name: medians(samples[arm.name]) for arm in chosen if samples.get(arm.name)}
    ours, buckets = medians(exact), medians(padded)
    lengths = {n: {"exact_ms": ours[n], "padded_ms": buckets[n]} for n in ours}
    return {"arms": speeds, "lengths": lengths, "samples": samples}


def markdown(found: dict[str, Any], prompt: int, generate: int) -> str:
    """Two tables: the arms against the base, and prompts against padded ones."""
    base = found["arms"][BASE]
    lines = [f"| | prefill {prompt}, tokens/s | | decode {generate}, tokens/s | |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, speeds in found["arms"].items():
        cells = [f"{speeds[k]:,.0f} | {speeds[k] / base[k]:.2f}x" for k in ("prefill", "decode")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| prompt | as it is, ms | padded to a power of two, ms | |"]
    lines.append("| ---: | ---: | ---: | ---: |")
    for length, times in found["lengths"].items():
        ratio = times["padded_ms"] / times["exact_ms"]
        lines.append(
            f"| {length} | {times['exact_ms']:.2f} | {times['padded_ms']:.2f} | {ratio:.2f}x |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a checkpoint or recipe; a random one by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-p", type=int, default=512, dest="prompt", help="tokens of the prompt")
    parser.add_argument("-n", type=int, default=64, dest="generate", help="tokens to generate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--keep", type=Path, metavar="DIR",
                        help="keep bundles here, and use those that are there")  # fmt: skip
    return parser.parse_args()


def prepare(given: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The bundles in `folder`, built where they are missing."""
    kept = places(folder)
    if all(path.is_dir() for path in kept.values()):
        return kept
    model = given.model
    if model is None:
        model = str(folder / "random-160m")
        subprocess.run([sys.executable, RANDOM, "160m", model], check=True)
    return build_all(model, given.settings, folder)


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(prepare(given, folder), given.threads, given.prompt, given.generate)
        found = run(bench, arms(given.threads), given.rounds)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found, given.prompt, given.generate))


if __name__ == "__main__":
    main()
