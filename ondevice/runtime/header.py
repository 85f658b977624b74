"""The numbers, structs and signatures of ondevice.h."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
)
from enum import IntEnum
from typing import Any

API_VERSION = 4
TOP_LOGPROBS = 20
SKIP_SPECIAL, CONTINUES = 4, 8  # OD_DECODE_*


class Status(IntEnum):
    """od_status."""

    OK = 0
    TIMEOUT = 1
    STOP = 2
    LENGTH = 3
    CANCELLED = 4
    CONTEXT_FULL = 5
    KV_FULL = 6
    EXPIRED = 7
    INVALID = -1
    BUSY = -2
    CLOSED = -3
    FORKED = -4
    MEMORY = -5
    MODEL = -6
    WEIGHTS = -7
    CPU = -8
    NUMERIC = -9
    FILE = -10


ENDINGS = tuple(status for status in Status if status > 0)


class CError(ctypes.Structure):
    _fields_ = [("text", c_char * 256)]


class COptions(ctypes.Structure):
    _fields_ = [
        ("threads", c_int32),
        ("conversations", c_int32),
        ("kv_blocks", c_int32),
        ("variant", c_char_p),
        ("draft_tokens", c_int32),
    ]


class CInfo(ctypes.Structure):
    _fields_ = [
        ("vocab_size", c_int32),
        ("context_tokens", c_int32),
        ("prefill_chunk_tokens", c_int32),
        ("logit_rows", c_int32),
        ("threads", c_int32),
        ("conversations", c_int32),
        ("kv_blocks", c_int32),
        ("kv_blocks_free", c_int32),
        ("kv_blocks_cached", c_int32),
        ("model", c_char_p),
        ("variant", c_char_p),
    ]


class CLogitBias(ctypes.Structure):
    _fields_ = [("token", c_int32), ("bias", c_float)]


class CStopString(ctypes.Structure):
    _fields_ = [("text", c_char_p), ("bytes", c_int32)]


class CSampling(ctypes.Structure):
    _fields_ = [
        ("max_tokens", c_int32),
        ("temperature", c_float),
        ("seed", c_uint64),
        ("stop_tokens", POINTER(c_int32)),
        ("stop_token_count", c_int32),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("typical_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("penalty_tokens", c_int32),
        ("logit_bias_count", c_int32),
        ("logit_bias", POINTER(CLogitBias)),
        ("logprobs", c_int32),
        ("timeout_ms", c_int32),
        ("tokenizer", c_uint64),
        ("text_flags", c_uint32),
        ("stop_string_count", c_int32),
        ("stop_strings", POINTER(CStopString)),
    ]


class CLogprob(ctypes.Structure):
    _fields_ = [("token", c_int32), ("logprob", c_float)]


class CTokenLogprobs(ctypes.Structure):
    _fields_ = [
        ("chosen", CLogprob),
        ("top_count", c_int32),
        ("top", CLogprob * TOP_LOGPROBS),
    ]


class CStats(ctypes.Structure):
    _fields_ = [
        ("prompt_tokens", c_int32),
        ("own_tokens", c_int32),
        ("shared_tokens", c_int32),
        ("computed_tokens", c_int32),
        ("generated_tokens", c_int32),
        ("first_token_ms", c_double),
        ("tokens_per_second", c_double),
        ("drafted_tokens", c_int32),
        ("accepted_tokens", c_int32),
        ("total_reused_tokens", c_int64),
        ("total_computed_tokens", c_int64),
    ]


# Arguments of each function, without the od_error* that all of them end with.
SIGNATURES: dict[str, list[Any]] = {
    "od_engine_open": [
        *(ctypes.c_void_p, c_int, c_int64, c_int64, POINTER(COptions)),
        POINTER(c_uint64),
    ],
    "od_engine_close": [c_uint64],
    "od_engine_describe": [c_uint64, POINTER(CInfo)],
    "od_conversation_open": [c_uint64, POINTER(c_uint64)],
    "od_conversation_close": [c_uint64],
    "od_fork": [c_uint64, POINTER(c_uint64)],
    "od_conversation_stats": [c_uint64, POINTER(CStats)],
    "od_conversation_tokens": [c_uint64, POINTER(c_int32)],
    "od_save": [c_uint64, c_int],
    "od_restore": [c_uint64, c_int, c_int64, c_int64, POINTER(c_uint64)],
    "od_rewind": [c_uint64, c_int32],
    "od_submit": [c_uint64, POINTER(c_int32), c_int32, POINTER(CSampling)],
    "od_read": [c_uint64, POINTER(c_int32), c_int32, c_int32, POINTER(c_int32)],
    "od_read_text": [c_uint64, c_char_p, c_int64, c_int32, POINTER(c_int64)],
    "od_read_logprobs": [
        *(c_uint64, POINTER(CTokenLogprobs), c_int32, c_int32),
        POINTER(c_int32),
    ],
    "od_cancel": [c_uint64],
    "od_logits": [c_uint64, POINTER(c_int32), c_int32, POINTER(c_float)],
    "od_profile_start": [c_uint64, c_int32],
    "od_profile_stop": [c_uint64],
    "od_profile_read": [c_uint64, ctypes.c_void_p, c_int64, POINTER(c_int64)],
    "od_profile_events": [c_uint64, ctypes.c_void_p, c_int64, POINTER(c_int64)],
}
