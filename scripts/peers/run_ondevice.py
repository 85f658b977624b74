"""Times a bundle of ondevice; see child.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import child

from ondevice.bundle.program import KV_BLOCK_TOKENS
from ondevice.runtime.engine import Engine
from ondevice.runtime.sampling import Sampling

TO_THE_END = Sampling(stop_tokens=())


class Ondevice:
    """One engine, a conversation for each text. Every token is sampled, and read from Python."""

    def __init__(self, job: dict[str, Any]) -> None:
        blocks = -(-job["context"] // KV_BLOCK_TOKENS)
        self._engine = Engine(
            job["path"],
            threads=job["threads"],
            conversations=1,
            kv_blocks=blocks,
            draft_tokens=-1,  # made-up tokens repeat themselves as no text does
        )

    def generate(self, prompt: Sequence[int], count: int) -> list[child.Moment]:
        with self._engine.conversation() as conversation:
            tokens = conversation.generate_tokens(prompt, count, TO_THE_END)
            return [child.now() for _ in tokens]

    def logits(self, window: Sequence[int]) -> Any:
        return self._engine.logits(window)


if __name__ == "__main__":
    child.main(Ondevice)
