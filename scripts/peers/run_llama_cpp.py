"""Times a GGUF file with llama.cpp, by its C API as llama-bench does; see child.py."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import child
import llama_cpp
import numpy as np

GGML_TYPES = {"f16": 1, "q8_0": 8}


class LlamaCpp:
    """Made-up tokens are fed one after another, as llama-bench does: none is sampled."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            job["path"].encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = job["context"]
        settings.n_threads = settings.n_threads_batch = job["threads"]
        settings.type_k = settings.type_v = GGML_TYPES[job["options"].get("kv", "f16")]
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot open {job['path']}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def generate(self, prompt: Sequence[int], count: int) -> list[child.Moment]:
        self._begin()
        self._feed(prompt)
        moments = [child.now()]
        for token in child.prompt(count - 1, len(prompt)):
            self._feed([token])
            moments.append(child.now())
        return moments

    def logits(self, window: Sequence[int]) -> Any:
        self._begin()
        batch = llama_cpp.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        self._check(llama_cpp.llama_decode(self._context, batch))
        rows = llama_cpp.llama_get_logits(self._context)
        found = np.ctypeslib.as_array(rows, (len(window), self._vocab)).copy()
        llama_cpp.llama_batch_free(batch)
        return found

    def _begin(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _feed(self, tokens: Sequence[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        self._check(llama_cpp.llama_decode(self._context, batch))
        llama_cpp.llama_synchronize(self._context)

    def _check(self, status: int) -> None:
        if status:
            raise SystemExit(f"llama_decode failed with {status}")


if __name__ == "__main__":
    child.main(LlamaCpp)
