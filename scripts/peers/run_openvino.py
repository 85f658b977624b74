"""Times an exported model with OpenVINO GenAI; see child.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import child
import numpy as np
import openvino
import openvino_genai


class Stamps(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Notes when tokens arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[child.Moment] = []

    def write(self, token: Any) -> Any:
        self.moments.append(child.now())
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class OpenVino:
    """LLMPipeline with greedy sampling; logits come from the same model without the pipeline."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._path = Path(job["path"])
        self._settings = {"INFERENCE_NUM_THREADS": job["threads"]}
        if "windows" in job:
            model = openvino.Core().compile_model(
                self._path / "openvino_model.xml", "CPU", self._settings
            )
            self._request = model.create_infer_request()
        else:
            self._pipeline = openvino_genai.LLMPipeline(
                self._path, "CPU", **self._settings, **job["options"]
            )

    def generate(self, prompt: Sequence[int], count: int) -> list[child.Moment]:
        tokens = np.array([prompt], np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(tokens), openvino.Tensor(np.ones_like(tokens))
        )
        wanted = openvino_genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = count, True, False
        stamps = Stamps()
        self._pipeline.generate(inputs, wanted, stamps)
        if len(stamps.moments) != count:
            raise SystemExit(f"OpenVINO generated {len(stamps.moments)} tokens, not {count}")
        return stamps.moments

    def logits(self, window: Sequence[int]) -> Any:
        tokens = np.array([window], np.int64)
        self._request.reset_state()
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(len(window), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return self._request.infer(inputs)["logits"][0]


if __name__ == "__main__":
    child.main(OpenVino)
