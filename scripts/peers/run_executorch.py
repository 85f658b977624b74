"""Times an exported model with ExecuTorch's XNNPACK back end; see child.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import child
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  its attention
from executorch.extension.pybindings import portable_lib
from executorch.kernels import quantized  # noqa: F401  its int8 embeddings


class ExecuTorch:
    """The exported forward(tokens, position), greedy as in its runner: a call for each token."""

    def __init__(self, job: dict[str, Any]) -> None:
        portable_lib._unsafe_reset_threadpool(job["threads"])
        path = Path(job["path"]) / "model.pte"
        self._module = portable_lib._load_for_executorch(str(path))

    def generate(self, prompt: Sequence[int], count: int) -> list[child.Moment]:
        logits = self._forward(prompt, 0)
        moments = []
        for position in range(len(prompt), len(prompt) + count):
            token = int(logits.argmax())
            moments.append(child.now())
            if len(moments) < count:
                logits = self._forward([token], position)
        return moments

    def logits(self, window: Sequence[int]) -> Any:
        raise SystemExit("the exported model gives the logits of the last token only")

    def _forward(self, tokens: Sequence[int], position: int) -> Any:
        # cached keys and values behind `position` are written over
        inputs = (torch.tensor([list(tokens)]), torch.tensor([position]))
        return self._module.forward(inputs, clone_outputs=False)[0]


if __name__ == "__main__":
    child.main(ExecuTorch)
