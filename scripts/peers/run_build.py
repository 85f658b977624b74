"""Build a bundle as `ondevice build` does, and say how long its steps took.

python run_build.py RECIPE CHECKPOINT OUT KEY=VALUE...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ondevice.build import build
from ondevice.gate.prompt import write_prompt
from ondevice.progress import Progress
from ondevice.recipe import load_recipe


class Steps(Progress):
    """When each step began."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}

    def begin(self, step: str, total: int, unit: str, done: int = 0) -> None:
        self.begun[step] = time.perf_counter()


def main() -> None:
    recipe, checkpoint, out, *settings = sys.argv[1:]
    steps, started = Steps(), time.perf_counter()
    loaded = load_recipe(recipe, model=checkpoint, settings=settings)
    build(loaded, Path(out), progress=steps, write_prompt=write_prompt)
    ended = time.perf_counter()
    begun = steps.begun
    found = {
        "code_s": begun["weights"] - started,  # libraries and tokenizer are complete
        "kernels_s": begun["runtime"] - begun["kernels"],
        "weights_s": ended - begun["weights"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
