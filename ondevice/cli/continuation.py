"""What `run` and `demo` share: stream a continuation to stdout, its figures to stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

DEFAULT_MAX_TOKENS = 256


def print_continuation(
    bundle: Path,
    prompt: str | bytes,
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
        loaded = monotonic()
        try:
            for piece in conversation.generate(tokens, max_tokens, sampling):
                print(piece, end="", flush=True)
        finally:
            print(flush=True)  # whatever ends the text, what follows starts on its own line
        stats = conversation.stats
        print(
            f"loaded in {1e3 * (loaded - started):.0f} ms; "
            f"prompt of {len(tokens)} tokens, first token after {stats.first_token_ms:.1f} ms; "
            f"{stats.generated_tokens} tokens at {stats.tokens_per_second:.0f} tok/s "
            f"({engine.info.threads} threads, {engine.info.variant})",
            file=sys.stderr,
        )
