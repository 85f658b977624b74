"""The functions of ondevice.h in Python: the same handles and calls, with errors raised.

`NativeEngine` and `NativeConversation` only call the C runtime. Each call is short (`read` waits
for at most its timeout), so Ctrl-C is never held up and other Python threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_uint64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import (
    API_VERSION,
    CONTINUES,
    ENDINGS,
    SIGNATURES,
    SKIP_SPECIAL,
    CError,
    CInfo,
    CLogitBias,
    COptions,
    CSampling,
    CStats,
    CStopString,
    CTokenLogprobs,
    Status,
)
from ondevice.runtime.sampling import GREEDY, Sampling, TokenLogprobs


class Library:
    """A loaded libondevice."""

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(os.fspath(path.absolute()))
        except OSError as error:
            raise RuntimeFailure(f"cannot load the C runtime {path}: {error}") from error
        version = library.od_version() if hasattr(library, "od_version") else "none"
        if version != API_VERSION:
            raise RuntimeFailure(f"{path} has API version {version}, this Python {API_VERSION}")
        self._functions = {name: library[name] for name in SIGNATURES}
        for name, arguments in SIGNATURES.items():
            function = self._functions[name]
            function.argtypes = [*arguments, POINTER(CError)]
            function.restype = c_int

    def call(self, name: str, *arguments: Any, passing: Sequence[Status] = ()) -> Status:
        """Call `od_<name>`; raises RuntimeFailure on a status not OK and not in `passing`."""
        error = CError()
        status = Status(self._functions[f"od_{name}"](*arguments, byref(error)))
        if status is not Status.OK and status not in passing:
            raise RuntimeFailure(error.text.decode(errors="replace"), int(status))
        return status


def model_descriptor(path: Path, symbol: str) -> int:
    """Address of the `od_model` that the library at `path` exports; it stays loaded for good."""
    try:
        return ctypes.addressof(
            ctypes.c_char.in_dll(ctypes.CDLL(os.fspath(path.absolute())), symbol)
        )
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"cannot load the compiled model {path}: {error}") from error


@dataclass(frozen=True)
class EngineInfo:
    """od_engine_info."""

    vocab_size: int
    context_tokens: int
    prefill_chunk_tokens: int
    logit_rows: int
    threads: int
    conversations: int
    kv_blocks: int
    kv_blocks_free: int
    kv_blocks_cached: int
    model: str
    variant: str


@dataclass(frozen=True)
class ConversationStats:
    """od_stats: what the last prompt (and what was generated on it) took.

    Once the prompt is done, `prompt_tokens` (history included) are `own_tokens` of earlier turns,
    `shared_tokens` found in the KV cache and `computed_tokens`. The totals are those since the
    conversation was opened. `first_token_ms` and `tokens_per_second` are 0 where there is none yet.
    """

    prompt_tokens: int
    own_tokens: int
    shared_tokens: int
    computed_tokens: int
    generated_tokens: int
    first_token_ms: float
    tokens_per_second: float
    drafted_tokens: int
    accepted_tokens: int
    total_reused_tokens: int
    total_computed_tokens: int

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompt that were not computed again."""
        return self.own_tokens + self.shared_tokens


class NativeEngine:
    """An engine over the descriptor at address `model` and the weights file at `weights`.

    `threads`, `conversations` and `kv_blocks` may be 0 for the runtime's defaults; `variant` names
    a CPU variant, None for the best. Raises RuntimeFailure.
    """

    def __init__(
        self,
        library: Library,
        model: int,
        weights: Path,
        *,
        offset: int = 0,
        threads: int = 0,
        conversations: int = 0,
        kv_blocks: int = 0,
        variant: str | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self.library = library
        self._handle = c_uint64()
        options = COptions(
            threads,
            conversations,
            kv_blocks,
            None if variant is None else variant.encode(),
            draft_tokens,
        )
        with weights.open("rb") as file:
            length = os.fstat(file.fileno()).st_size - offset
            library.call(
                *("engine_open", model, file.fileno(), offset, length, byref(options)),
                byref(self._handle),
            )

    @property
    def info(self) -> EngineInfo:
        info = CInfo()
        self.library.call("engine_describe", self._handle, byref(info))
        values = {name: getattr(info, name) for name, *_ in info._fields_}
        names = {key: values[key].decode() for key in ("model", "variant")}
        return EngineInfo(**(values | names))

    def conversation(self) -> NativeConversation:
        handle = c_uint64()
        self.library.call("conversation_open", self._handle, byref(handle))
        return NativeConversation(self, handle)

    def restore(self, file: int) -> NativeConversation:
        """What `save` wrote to the open file, which must stay as it is while the engine is open."""
        handle = c_uint64()
        length = os.fstat(file).st_size
        self.library.call("restore", self._handle, file, 0, length, byref(handle))
        return NativeConversation(self, handle)

    def close(self) -> None:
        """Join all threads and free everything; closing twice is allowed."""
        self.library.call("engine_close", self._handle, passing=(Status.CLOSED, Status.FORKED))


class NativeConversation:
    """od_conversation."""

    def __init__(self, engine: NativeEngine, handle: c_uint64) -> None:
        self._engine = engine
        self._call = engine.library.call
        self._handle = handle

    @property
    def length(self) -> int:
        """Tokens that the conversation holds, submitted and generated."""
        count = c_int32()
        self._call("conversation_tokens", self._handle, byref(count))
        return count.value

    @property
    def stats(self) -> ConversationStats:
        stats = CStats()
        self._call("conversation_stats", self._handle, byref(stats))
        return ConversationStats(**{name: getattr(stats, name) for name, *_ in stats._fields_})

    def fork(self) -> NativeConversation:
        """Another conversation that holds the same, sharing KV blocks until one writes to them."""
        handle = c_uint64()
        self._call("fork", self._handle, byref(handle))
        return NativeConversation(self._engine, handle)

    def submit(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        tokenizer: int = 0,
        text_flags: int = SKIP_SPECIAL | CONTINUES,
    ) -> None:
        """Append `tokens` and start to generate.

        `tokenizer` is the handle of one that stays open until the answer has ended; `read_text` and
        stop strings need it. `text_flags` are those of `od_text_stream_open`. Stop tokens None are
        none here.
        """
        native = _sampling(max_tokens, sampling, tokenizer, text_flags)
        self._call("submit", self._handle, _int32_array(tokens), len(tokens), byref(native))

    def read(self, capacity: int = 64, timeout_ms: int = 100) -> tuple[Status, list[int]]:
        """What is there after at most `timeout_ms`, and OK, TIMEOUT or how the generation ended."""
        buffer = (c_int32 * capacity)()
        count = c_int32()
        status = self._call(
            *("read", self._handle, buffer, capacity, timeout_ms, byref(count)), passing=ENDINGS
        )
        return status, buffer[: count.value]

    def read_text(self, capacity: int = 4096, timeout_ms: int = 100) -> tuple[Status, str]:
        """The same as text: whole characters, of at most `capacity` bytes."""
        buffer = ctypes.create_string_buffer(capacity)
        count = c_int64()
        status = self._call(
            *("read_text", self._handle, buffer, capacity, timeout_ms, byref(count)),
            passing=ENDINGS,
        )
        return status, buffer.raw[: count.value].decode()

    def read_logprobs(
        self, capacity: int = 64, timeout_ms: int = 100
    ) -> tuple[Status, list[TokenLogprobs]]:
        """`read` with the logprobs that `Sampling.logprobs` asked for.

        Tokens that stand for the part of a token before a stop string have that token's logprobs at
        the first of them, and 0 and no others at the rest.
        """
        buffer = (CTokenLogprobs * capacity)()
        count = c_int32()
        status = self._call(
            *("read_logprobs", self._handle, buffer, capacity, timeout_ms, byref(count)),
            passing=ENDINGS,
        )
        return status, [_token_logprobs(entry) for entry in buffer[: count.value]]

    def explain(self) -> str:
        """How the last generation ended, in words with the numbers that matter."""
        try:
            self._call("read", self._handle, (c_int32 * 1)(), 1, 0, byref(c_int32()))
        except RuntimeFailure as error:
            return str(error)
        return "the conversation is still generating"

    def logits(self, tokens: Sequence[int], vocab_size: int) -> NDArray[np.float32]:
        """[len(tokens), vocab_size]; returns only when all are computed."""
        logits = np.empty((len(tokens), vocab_size), np.float32)
        target = logits.ctypes.data_as(POINTER(c_float))
        self._call("logits", self._handle, _int32_array(tokens), len(tokens), target)
        return logits

    def rewind(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        self._call("rewind", self._handle, tokens)

    def save(self, file: int) -> None:
        """Write it, at rest, to an open file descriptor."""
        self._call("save", self._handle, file)

    def cancel(self) -> None:
        self._call("cancel", self._handle)

    def close(self) -> None:
        """Free its KV blocks; closing twice, or after the engine, is allowed."""
        self._call("conversation_close", self._handle, passing=(Status.CLOSED, Status.FORKED))


def _int32_array(tokens: Sequence[int]) -> ctypes.Array[c_int32]:
    """Raises RuntimeFailure on a number that is no int32: ctypes would cut it silently."""
    for token in tokens:
        if not -(2**31) <= token < 2**31:
            raise RuntimeFailure(f"token {token} is not a 32-bit number", Status.INVALID)
    return (c_int32 * len(tokens))(*tokens)


def _sampling(max_tokens: int, sampling: Sampling, tokenizer: int, text_flags: int) -> CSampling:
    stop_tokens = sampling.stop_tokens or ()
    biased = _int32_array(tuple(sampling.logit_bias))
    biases = [CLogitBias(*b) for b in zip(biased, sampling.logit_bias.values(), strict=True)]
    texts = [text.encode("utf-8", errors="surrogatepass") for text in sampling.stop]
    stops = [CStopString(text, len(text)) for text in texts]
    return CSampling(
        max_tokens=_clamped(max_tokens),
        temperature=sampling.temperature,
        seed=sampling.seed,
        stop_tokens=_int32_array(stop_tokens),
        stop_token_count=len(stop_tokens),
        top_k=_clamped(sampling.top_k),
        top_p=_not_default(sampling.top_p),
        min_p=sampling.min_p,
        typical_p=_not_default(sampling.typical_p),
        repetition_penalty=_not_default(sampling.repetition_penalty),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        penalty_tokens=_clamped(sampling.penalty_tokens),
        logit_bias_count=len(biases),
        logit_bias=(CLogitBias * len(biases))(*biases),
        logprobs=_logprobs(sampling.logprobs),
        timeout_ms=_milliseconds(sampling.timeout_s),
        tokenizer=tokenizer,
        text_flags=text_flags,
        stop_string_count=len(stops),
        stop_strings=(CStopString * len(stops))(*stops),
    )


def _clamped(count: int) -> int:
    """A count as an int32; what is more than it can hold means the same as the most."""
    return max(-(2**31), min(count, 2**31 - 1))


def _token_logprobs(entry: CTokenLogprobs) -> TokenLogprobs:
    top = tuple((t.token, t.logprob) for t in entry.top[: entry.top_count])
    return TokenLogprobs(entry.chosen.token, entry.chosen.logprob, top)


def _not_default(value: float) -> float:
    """Zero means the default in C: a zero that was asked for is the least float above it."""
    return value if value != 0 else 1.4e-45


def _logprobs(top: int | None) -> int:
    """What C has as 0 for none and 1 + n for n likeliest."""
    if top is None:
        return 0
    return _clamped(top if top < 0 else top + 1)


def _milliseconds(seconds: float | None) -> int:
    """Rounded up, as far as C counts; what is no time at all becomes -1, for C to refuse."""
    if seconds is None:
        return 0
    return max(1, math.ceil(min(seconds * 1e3, 2**31 - 1))) if seconds >= 0 else -1
