"""Everything a measurement needs, made once and kept in the cache.

CACHE/environments/NAME     a Python environment with a peer
CACHE/checkpoints/MODEL     the checkpoint that everyone converts
CACHE/artifacts/NAME/MODEL  what a peer makes of it
CACHE/logs                  what pip and the converters said

A folder is there only when it is complete: it is made under another name and renamed, an
environment, which cannot be moved, has a file `ready.json` instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.contestants import CONTEXT_TOKENS, ENVIRONMENTS, Contestant, Environment, Model
from peers.usage import Usage, run_watched

HERE = Path(__file__).resolve().parent
RANDOM_CHECKPOINT = HERE.parent / "random_checkpoint.py"
OURS = ("ondevice", "ondevice.kernels", "ondevice.recipes")
CONTEXT = 4096

# llama-cpp-python's builds, the first that works is taken. Some compilers' AMX intrinsics fault.
LLAMA_BUILDS = [
    ("built for this CPU", ""),
    ("built for this CPU without AMX, which crashed", "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"),
]


class Missing(Exception):
    """Something cannot be had; the message says what and what to do."""


class Killed(Missing):
    """A program was killed, as they are for too much memory."""


class Cache:
    """The cache directory; every method returns at once where its result is already there."""

    def __init__(self, root: Path, shared: Path) -> None:
        self.root = root.resolve()
        self._shared = shared
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        self._missing: dict[str, Missing] = {}

    # ---- checkpoints ----

    def checkpoint(self, model: Model) -> Path:
        """The float checkpoint of `model`. Raises Missing."""
        place = self.root / "checkpoints" / model.name
        if place.exists():
            return place
        part = fresh(place)
        if model.preset:
            command = [RANDOM_CHECKPOINT, model.preset, part, "--context", str(CONTEXT)]
        else:
            source = self._shared / "models/SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
            script = self._shared / "scripts/smollm2_gguf_to_hf.py"
            if not source.exists():
                raise Missing(f"{source} is not there: give its directory with --shared")
            command = [script, source, part]
        self._run(f"checkpoint-{model.name}", [sys.executable, *command])
        part.rename(place)
        return place

    # ---- environments ----

    def python(self, name: str) -> Path:
        """The interpreter of an environment, "" is this one. Raises Missing."""
        if not name:
            return Path(sys.executable)
        if name in self._missing:
            raise self._missing[name]
        place = self.root / "environments" / name
        environment = next(e for e in ENVIRONMENTS if e.name == name)
        if self.stamp(name).get("packages") != list(environment.packages):
            try:
                self._install(place, environment)
            except Missing as missing:
                self._missing[name] = missing
                raise
        return place / "bin" / "python"

    def stamp(self, name: str) -> dict[str, Any]:
        """What is installed: `packages` and a `note`; empty before."""
        path = self.root / "environments" / name / "ready.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _install(self, place: Path, environment: Environment) -> None:
        say(f"installing {environment.name}: {' '.join(environment.packages)}")
        log = f"install-{environment.name}"
        shutil.rmtree(place, ignore_errors=True)
        self._run(log, [sys.executable, "-m", "venv", place])
        pip = [place / "bin/python", "-m", "pip", "--disable-pip-version-check"]
        note = environment.note
        if environment.name == "llama.cpp":
            note = self._install_llama_cpp(log, pip, environment)
        else:
            self._run(log, [*pip, "install", *environment.packages])
        if environment.remove:
            self._run(log, [*pip, "uninstall", "-y", *environment.remove])
        stamp = {"packages": environment.packages, "note": note}
        (place / "ready.json").write_text(json.dumps(stamp) + "\n")

    def _install_llama_cpp(self, log: str, pip: Sequence[Any], environment: Environment) -> str:
        """Build it from source, and try each build on a tiny model."""
        tiny = self.root / "checkpoints" / "llama.cpp-trial"
        if not tiny.exists():
            sizes = "--hidden 256 --layers 1 --heads 4 --kv-heads 4 --inner 512 --vocab 30000"
            command = [sys.executable, RANDOM_CHECKPOINT, "15m", tiny, *sizes.split()]
            self._run(log, command)
        for note, flags in LLAMA_BUILDS:
            options = ["-DGGML_NATIVE=ON"]
            options += [f"-DCMAKE_{c}_FLAGS='{flags}'" for c in ("C", "CXX") if flags]
            variables = {"CMAKE_ARGS": " ".join(options), "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
            rebuild = ["--force-reinstall", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
            self._run(log, [*pip, "install", *rebuild, *environment.packages], variables)
            model = self.root / "trial.gguf"
            self._run(log, [pip[0], HERE / "to_gguf.py", tiny, model, "q4_0"])
            test = {"name": "trial", "prompt": 64, "generate": 8, "reps": 1}
            job = {"path": str(model), "threads": 2, "cpus": sorted(os.sched_getaffinity(0)),
                   "context": 256, "options": {}, "tests": [test]}  # fmt: skip
            try:
                self._run(log, [pip[0], HERE / "run_llama_cpp.py", json.dumps(job)])
            except Missing:
                say(f"llama.cpp {note}: crashes")
                continue
            return note
        raise Missing(f"no build of llama.cpp works here, see {self.root}/logs/{log}.log")

    # ---- artifacts ----

    def artifact(self, contestant: Contestant, model: Model) -> Path:
        """The folder or file that `contestant` loads. Raises Missing, every time the same."""
        place = self._place(contestant, model)
        if str(place) in self._missing:
            raise self._missing[str(place)]
        if not place.exists():
            try:
                self._make(contestant, model, place)
            except Missing as missing:
                self._missing[str(place)] = missing
                raise
        return place / "model.gguf" if contestant.program == "llama_cpp" else place

    def _make(self, contestant: Contestant, model: Model, place: Path) -> None:
        checkpoint = self.checkpoint(model)
        python = self.python(contestant.environment)
        say(f"converting {model.name} for {contestant.artifact}")
        for older in place.parent.parent.glob(f"{contestant.artifact}-????????/{model.name}"):
            shutil.rmtree(older)
        part = fresh(place)
        usage = self._convert(contestant, model, checkpoint, python, part)
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        figures = {**asdict(usage), "bytes": size}
        place.with_name(f"{model.name}.json").write_text(json.dumps(figures) + "\n")
        part.rename(place)

    def conversion(self, contestant: Contestant, model: Model) -> dict[str, float]:
        """Seconds and memory of the conversion, and bytes of its result."""
        path = self._place(contestant, model).with_name(f"{model.name}.json")
        found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _place(self, contestant: Contestant, model: Model) -> Path:
        version = "" if contestant.environment else f"-{our_version()}"
        return self.root / "artifacts" / f"{contestant.artifact}{version}" / model.name

    def _convert(
        self, contestant: Contestant, model: Model, checkpoint: Path, python: Path, out: Path
    ) -> Usage:
        settings = contestant.settings
        log = f"convert-{contestant.artifact}-{model.name}"
        match contestant.program:
            case "ondevice":
                changes = [word for s in settings for word in ("--set", s)]
                command = ["-m", "ondevice", "build", model.recipe, "--model", checkpoint, *changes]
                words = [python, *command, "--set", "context_tokens=4096", "--out", out]
            case "llama_cpp":
                out.mkdir(parents=True)
                words = [python, HERE / "to_gguf.py", checkpoint, out / "model.gguf", *settings]
            case "openvino":
                options = f"--task text-generation-with-past --weight-format int4 --ratio 1.0 \
                    --group-size {model.openvino_group}".split()
                command = ["export", "openvino", "--model", checkpoint, *options, out]
                words = [python.with_name("optimum-cli"), *command]
            case "onnxruntime":
                options = "-p int4 -e cpu --extra_options int4_accuracy_level=4".split()
                folders = ["-i", checkpoint, "-o", out, "-c", self.root / "scratch"]
                builder = [python, "-m", "onnxruntime_genai.models.builder", "-m", checkpoint]
                words = [*builder, *folders, *options]
            case "executorch":
                words = [python, HERE / "to_executorch.py", checkpoint, out, CONTEXT_TOKENS]
            case other:
                raise AssertionError(other)
        return self._run(log, words)

    # ---- commands ----

    def _run(
        self, log: str, command: Sequence[Any], variables: dict[str, str] | None = None
    ) -> Usage:
        """Run it with its output in a log. Raises Missing where it fails."""
        path = self.root / "logs" / f"{log}.log"
        words = [str(word) for word in command]
        with path.open("ab") as file:
            file.write(f"$ {' '.join(words)}\n".encode())
            file.flush()
            environment = {**os.environ, **(variables or {})}
            # elsewhere: a directory named as a package of theirs would be imported in its place
            status, usage = run_watched(
                words, stdout=file, stderr=file, env=environment, cwd=self.root / "logs"
            )
        if status:
            raise Missing(f"{words[0]} failed with {status}, see {path}")
        return usage


def our_version() -> str:
    """Eight letters that change with the compiler, its runtime, kernels and recipes."""
    digest = hashlib.sha256()
    for package in OURS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise Missing("ondevice is not installed: pip install . in its repository")
        for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*")):
            if path.suffix in (".py", ".c", ".h", ".toml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def fresh(place: Path) -> Path:
    """A name beside `place` under which nothing exists."""
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    return part


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
