"""Times an exported model with ONNX Runtime GenAI; see child.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import child
import numpy as np
import onnxruntime_genai


class OnnxRuntime:
    """A generator for each text, greedy."""

    def __init__(self, job: dict[str, Any]) -> None:
        config = onnxruntime_genai.Config(job["path"])
        session = {"intra_op_num_threads": job["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompt: Sequence[int], count: int) -> list[child.Moment]:
        generator = self._generator(len(prompt) + count)
        generator.append_tokens(np.array(prompt, np.int32))
        moments = []
        for _ in range(count):
            generator.generate_next_token()
            moments.append(child.now())
        return moments

    def logits(self, window: Sequence[int]) -> Any:
        generator = self._generator(len(window) + 1)
        generator.append_tokens(np.array(window, np.int32))
        return generator.get_output("logits")[0]

    def _generator(self, length: int) -> Any:
        wanted = onnxruntime_genai.GeneratorParams(self._model)
        # no token ends a text before its length
        wanted.set_search_options(max_length=length, min_length=length, do_sample=False)
        return onnxruntime_genai.Generator(self._model, wanted)


if __name__ == "__main__":
    child.main(OnnxRuntime)
