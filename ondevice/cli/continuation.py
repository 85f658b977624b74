"""What `run` and `demo` share: stream a continuation to stdout, its figures to stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

DEFAULT_MAX_TOKENS = 256


def print_continuation(
    bundle: Path,
    prompt: str,
    max_tokens: int | None,
    temperature: float,
    seed: int,
    threads: int | None = None,
) -> None:
    """Continue `prompt` with the model in `bundle`, printing text as it comes.

    Without `max_tokens` it ends after DEFAULT_MAX_TOKENS or where the context is full.
    """
    import ondevice
    from ondevice.runtime.sampling import Sampling

    started = monotonic()
    with ondevice.load(bundle, threads=threads) as engine, engine.conversation() as conversation:
        tokens = engine.tokenizer.encode(prompt)
        sampling = Sampling(temperature, seed=seed)
        if max_tokens is None:
            room = engine.info.context_tokens - len(tokens)
            max_tokens = max(1, min(DEFAULT_MAX_TOKENS, room))
        loaded = first = monotonic()
        try:
            for piece in conversation.generate(tokens, max_tokens, sampling):
                if first == loaded:
                    first = monotonic()
                print(piece, end="", flush=True)
        finally:
            print(flush=True)  # whatever ends the text, what follows starts on its own line
        ended = monotonic()
        made = conversation.length - len(tokens)
        print(
            f"loaded in {1e3 * (loaded - started):.0f} ms; "
            f"prompt of {len(tokens)} tokens, first text after {1e3 * (first - loaded):.1f} ms; "
            f"{made} tokens at {made / (ended - loaded):.0f} tok/s "
            f"({engine.info.threads} threads, {engine.info.variant})",
            file=sys.stderr,
        )
