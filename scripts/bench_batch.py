"""Throughput of several conversations at once, and that each says what it says alone.

    python scripts/bench_batch.py BUNDLE --conversations 1 2 4 8 --tokens 64

Every conversation generates `--tokens` greedily from a prompt of its own. Prints tokens per second
of all together (the median of the rounds), and ends with an error where a token differs.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

from ondevice.runtime.engine import Engine
from ondevice.runtime.sampling import Sampling

PROMPT_TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft-tokens", type=int, default=-1)
    options = parser.parse_args()
    with Engine(
        options.bundle, threads=options.threads, draft_tokens=options.draft_tokens
    ) as engine:
        alone = [say(engine, i, options.tokens) for i in range(max(options.conversations))]
        for count in options.conversations:
            speeds = []
            for _ in range(options.rounds):
                with ThreadPoolExecutor(count) as pool:
                    started = perf_counter()
                    said = list(pool.map(lambda i: say(engine, i, options.tokens), range(count)))
                    speeds.append(count * options.tokens / (perf_counter() - started))
                assert said == alone[:count], "a conversation says something else in company"
            print(f"{count} conversations: {median(speeds):.1f} tok/s", flush=True)


def say(engine: Engine, number: int, tokens: int) -> list[int]:
    """What conversation `number` says; no token ends it early."""
    vocab = engine.info.vocab_size
    prompt = [(number * 977 + i * 131 + 7) % vocab for i in range(PROMPT_TOKENS)]
    with engine.conversation() as conversation:
        return list(conversation.generate_tokens(prompt, tokens, Sampling(stop_tokens=())))


if __name__ == "__main__":
    main()
