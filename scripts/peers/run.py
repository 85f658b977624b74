"""One run of the comparison: what it measured so far, and how a contestant is measured."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import table
from peers.contestants import CONTEXT_TOKENS, Contestant, Model, Test, tests_of
from peers.prepare import Cache, Killed, Missing, say

PROGRAMS = Path(__file__).resolve().parent
CHILD_TIMEOUT_S = 400


@dataclass
class Run:
    """`rows` holds what is no speed: by row, then by contestant."""

    cache: Cache
    cpus: list[int]
    contestants: list[Contestant]
    samples: list[table.Sample] = field(default_factory=list)
    ceilings: list[dict[str, Any]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)
    perplexity: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def child(
        self,
        contestant: Contestant,
        model: Model,
        job: dict[str, Any],
        timeout_s: float = CHILD_TIMEOUT_S,
    ) -> dict[str, Any]:
        """What run_PEER.py says of a job. Raises Missing."""
        path = self.cache.artifact(contestant, model)
        job = {"path": str(path), "context": CONTEXT_TOKENS, "options": contestant.options, **job}
        python = self.cache.python(contestant.environment)
        words = [python, PROGRAMS / f"run_{contestant.program}.py", json.dumps(job)]
        return self.program(words, timeout_s)

    def program(
        self, words: Sequence[Any], timeout_s: float = CHILD_TIMEOUT_S, **options: Any
    ) -> dict[str, Any]:
        """The JSON object in the last line that a program prints. Raises Missing."""
        name = Path(words[1]).name
        try:
            done = subprocess.run(
                list(map(str, words)),
                capture_output=True,
                text=True,
                cwd=self.cache.root / "logs",  # where no directory is named like a package
                timeout=timeout_s,
                **options,
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"{name} took over {timeout_s} s") from None
        if done.returncode == -signal.SIGKILL:
            raise Killed(f"{name} was killed")
        try:
            if done.returncode:
                raise ValueError
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise Missing(f"{name} ended with {done.returncode}: {done.stderr[-600:]}") from None
        return found

    def measure(self, contestant: Contestant, model: Model, number: int) -> None:
        """The tests of one contestant in one round, a process for each number of threads."""
        tests = tests_of(model, number, contestant)
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

    def leave_out(self, contestant: str, model: str, reason: Exception) -> None:
        """Say it once for each reason."""
        if str(reason) not in self.left_out.values():
            say(f"without {contestant} on {model}: {reason}")
        self.left_out[f"{contestant} on {model}"] = str(reason)


def spec(test: Test) -> dict[str, Any]:
    return {
        "name": test.name,
        "prompt": test.prompt,
        "generate": test.generate,
        "reps": test.reps,
        "busy": test.busy,
    }


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
