"""Perplexity of the real model, the same windows of the same text for everyone."""

from __future__ import annotations

import json
import subprocess
import sys
from math import exp, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from peers.contestants import Contestant, Model
from peers.prepare import Missing, say
from peers.run import PROGRAMS, Run

WINDOWS, WINDOW_TOKENS = 16, 1024
TEXT_BYTES = 6 * WINDOWS * WINDOW_TOKENS  # enough for them


def perplexities(
    run: Run, contestants: list[Contestant], model: Model, text: Path
) -> dict[str, Any]:
    """By artifact: {"perplexity", "scored_tokens", "window_losses"}; kept beside the artifact."""
    windows = run.cache.root / f"windows-{text.stem}-{WINDOWS}x{WINDOW_TOKENS}.json"
    found = {}
    for contestant in contestants:
        try:
            artifact = run.cache.artifact(contestant, model)
            folder = artifact.parent if artifact.is_file() else artifact
            options = "".join(f"-{value}" for value in contestant.options.values())
            kept = folder.with_name(f"{model.name}{options}-{windows.stem}.json")
            if not kept.exists():
                if not windows.exists():
                    write_windows(run, model, text, windows)
                say(f"perplexity of {contestant.name}")
                job = {"threads": len(run.cpus), "cpus": run.cpus, "windows": str(windows)}
                kept.write_text(json.dumps(run.child(contestant, model, job)) + "\n")
            found[contestant.name] = json.loads(kept.read_text())
        except Missing as missing:
            run.leave_out(contestant.name, f"{model.name}'s perplexity", missing)
    return found


def write_windows(run: Run, model: Model, text: Path, out: Path) -> None:
    """Token windows of the start of a text, as `ondevice eval` cuts them."""
    if not text.exists():
        raise Missing(f"no text at {text}: give one with --text")
    program = [PROGRAMS / "windows.py", run.cache.checkpoint(model), text]
    sizes = map(str, (TEXT_BYTES, WINDOW_TOKENS))
    done = subprocess.run([sys.executable, *program, *sizes], capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"windows.py failed: {done.stderr[-600:]}")
    cut = [window for window in json.loads(done.stdout) if len(window) == WINDOW_TOKENS]
    out.write_text(json.dumps(cut[:WINDOWS]))


def compared(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Ratio of perplexities from the losses of windows, and its standard error.

    The windows are the same, so that their differences tell more than the two figures do.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    ratio = exp(fmean(differences))
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else 0.0
    return ratio, ratio * error
