"""Time the first token of chats that begin with the system prompt that a bundle ships.

python run_shipped.py BUNDLE THREADS CPU,... SYSTEM
"""

from __future__ import annotations

import json
import os
import sys
import time

from ondevice.runtime.engine import Engine

QUESTIONS = ("Hello!", "Why is the sky blue?", "Name three animals.", "Who are you?", "Say 7 x 8.")


def main() -> None:
    bundle, threads, cpus, system = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cpus.split(",")))
    started = time.perf_counter()
    with Engine(bundle, threads=int(threads), conversations=2) as engine:
        opened = time.perf_counter() - started
        seconds, reused, tokens = [], [], []
        for question in QUESTIONS:
            with engine.conversation() as conversation:
                begin = time.perf_counter()
                prompt = engine.tokenizer.chat_tokens(
                    [{"role": "system", "content": system}, {"role": "user", "content": question}]
                )
                next(iter(conversation.generate_tokens(prompt, 1)))
                seconds.append(time.perf_counter() - begin)
                tokens.append(len(prompt))
                reused.append(conversation.stats.reused_tokens)
        found = {"open_s": opened, "first_token_s": seconds, "prompt_tokens": tokens,
                 "reused_tokens": reused}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
