"""What `run` and `demo` share: stream a continuation to stdout, its figures to stderr."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def print_continuation(
    bundle: Path, prompt: str, max_tokens: int, temperature: float, seed: int, threads: int
) -> None:
    """Continue `prompt` with the model in `bundle`, printing text as it comes."""
    import ondevice

    started = time.monotonic()
    with ondevice.load(bundle, threads=threads) as engine:
        loaded = time.monotonic()
        stream = engine.generate(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
    print(f"[{ended - started:.2f} s]", file=sys.stderr)
