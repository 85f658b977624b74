"""Program: the launch table that one C executor walks, and all it needs to know of a model.

It is static data. Sizes are `Extent`s of the step's symbols, so one table serves prefill, decode,
batched decode and verification at any length. Nothing here names a weight's values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from ondevice.dims import Extent
from ondevice.dtypes import DType, f16, f32, i8

FORMAT_VERSION = 4
KV_BLOCK_TOKENS = 32
KV_SCALE_BYTES = 4 * KV_BLOCK_TOKENS  # behind the int8 codes of a tile: a float32 for each token
KV_DTYPES: dict[str, DType] = {"f32": f32, "f16": f16, "int8": i8}  # in recipes and manifests
KV_SPAN_TOKENS = 256  # cached positions that are attended under one softmax
ALL_SPANS = 2**31 - 1


class Space(IntEnum):
    """Where an argument lies."""

    WEIGHTS = 0  # offset: bytes from the start of the weights' data
    ARENA = 1  # index: slot; offset: bytes inside the slot
    STEP = 2  # index: a StepBuffer
    KV = 3  # the base of the pool of KV blocks
    WORKER = 4  # offset: bytes in the worker's own memory


class StepBuffer(IntEnum):
    """What the engine prepares for each step (int32 unless said otherwise)."""

    TOKENS = 0  # [S]
    POSITIONS = 1  # [S] position of the token in its conversation
    SEQUENCE = 2  # [S] row of the block table
    BLOCK_TABLE = 3  # [B, block_table_width]
    LOGIT_ROWS = 4  # [L] rows of [S] whose logits are wanted
    LOGITS = 5  # [L, vocab_size] f32, written by the program
    ROPE = 6  # [S, rope_dim] f32: cos of rope_dim/2 angles, then sin


@dataclass(frozen=True)
class Argument:
    """One buffer pointer handed to a kernel."""

    space: Space
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Slot:
    """A piece of the arena; its size in bytes is evaluated at each step and rounded up to 64."""

    name: str
    size_bytes: Extent


@dataclass(frozen=True)
class ProgramKernel:
    """A compiled kernel: `symbol` is shared by its variants, which append their CPU variant."""

    symbol: str
    scratch_bytes: int  # per worker
    text_sha256: str  # of its printed Kernel text: code enters the abi_hash through this


@dataclass(frozen=True)
class Launch:
    """Run `kernel` over `tasks` tasks when `min_rows <= rows <= max_rows`, and as for spans (T)."""

    kernel: int
    arguments: tuple[Argument, ...]
    scalars: tuple[Extent, ...]  # the kernel's run-time dims and scalar parameters, as int32
    tasks: Extent
    chunk: int  # tasks claimed at once by a worker
    rows: Extent
    min_rows: int
    max_rows: int
    barrier: bool  # all earlier launches must have finished
    source: str  # the place in the model this comes from, e.g. "layers.3.mlp.up"
    min_spans: int = 0
    max_spans: int = ALL_SPANS
    chained: bool = False  # who claims tasks of the launch before runs these after them
    each: bool = False  # every worker runs it whole, for itself

    def runs(self, sizes: Mapping[str, int]) -> bool:
        """Whether a step of these sizes runs it."""
        rows = self.min_rows <= self.rows.evaluate(sizes) <= self.max_rows
        spans = self.min_spans <= sizes["T"] <= self.max_spans
        return rows and spans and self.tasks.evaluate(sizes) > 0


def step_sizes(rows: int, depth: int = 0, logits: int = 1) -> dict[str, int]:
    """The symbols of a step of `rows` tokens of one conversation that has `depth` others."""
    spans = -(-(depth + rows) // KV_SPAN_TOKENS)
    return {"S": rows, "L": logits, "B": 1, "P": 1, "T": spans}


def kv_tile_elements(head_dim: int, dtype: DType) -> int:
    """Elements of what a block has of one layer, of keys or of values, and of one KV head."""
    return head_dim * KV_BLOCK_TOKENS + (KV_SCALE_BYTES if dtype == i8 else 0)


@dataclass(frozen=True)
class KvCache:
    """Geometry of the paged KV pool.

    A block holds 32 tokens of all layers: [layers][2][kv_heads][head_dim * 32], keys stored as
    [head_dim][32] and values as [32][head_dim], so that one copy moves a block. Of int8 codes, the
    32 scales of the tokens follow: 128 bytes for each of the last.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: DType

    @property
    def block_bytes(self) -> int:
        tile = kv_tile_elements(self.head_dim, self.dtype) * self.dtype.bytes
        return self.layers * 2 * self.kv_heads * tile


@dataclass(frozen=True)
class Rope:
    """Rotary embedding table of a step: angle = float32(position) * inv_freq[i] in float32."""

    inv_freq: tuple[float, ...]  # rope_dim / 2 float32 values
    scale: float = 1.0  # multiplies cos and sin (YaRN's attention factor)


@dataclass(frozen=True)
class WeightEntry:
    """A tensor of the weights file: `offset` in bytes from the start of the data, 64-aligned."""

    name: str
    scheme: str
    shape: tuple[int, ...]  # the true shape [N, K] or [K]
    layout: str  # how it is packed and padded
    offset: int
    size_bytes: int


def step_bytes(slots: tuple[Slot, ...], rows: int, logit_rows: int, vocab_size: int) -> int:
    """Arena and logits of a step of `rows` tokens of one conversation."""
    sizes = {"S": rows, "L": logit_rows, "B": 1, "P": 0}
    arena = sum(-(-slot.size_bytes.evaluate(sizes) // 64) * 64 for slot in slots)
    return arena + 4 * logit_rows * vocab_size


@dataclass(frozen=True)
class Program:
    """Everything the executor needs; printed by `bundle.program_text`, emitted into libmodel."""

    name: str
    vocab_size: int
    context_tokens: int
    prefill_chunk_tokens: int  # largest S of a step
    logit_rows: int  # largest L of a step
    kv: KvCache
    ropes: tuple[Rope, ...]
    slots: tuple[Slot, ...]
    kernels: tuple[ProgramKernel, ...]
    launches: tuple[Launch, ...]
    weights: tuple[WeightEntry, ...]
    weights_bytes: int  # length of the data behind the header
    worker_bytes: int = 0  # of each worker, for what it computes for itself

    @property
    def scratch_bytes(self) -> int:
        """What kernels want of each worker; the worker's own results lie behind it."""
        return max((kernel.scratch_bytes for kernel in self.kernels), default=0)

    def running(self, sizes: Mapping[str, int]) -> list[Launch]:
        """The launches of a step of these sizes, in order."""
        return [launch for launch in self.launches if launch.runs(sizes)]

    def barriers(self, sizes: Mapping[str, int]) -> tuple[int, float]:
        """How often a step of these sizes waits for all workers, and how often in each layer."""
        waits = [launch.source for launch in self.running(sizes) if launch.barrier]
        inside = sum(source.startswith("layers.") for source in waits)
        return len(waits), inside / self.kv.layers

    @property
    def block_table_width(self) -> int:
        return -(-self.context_tokens // KV_BLOCK_TOKENS)

    @property
    def step_bytes(self) -> int:
        """Arena and logits of the largest step: what it takes but for small tables."""
        return step_bytes(self.slots, self.prefill_chunk_tokens, self.logit_rows, self.vocab_size)

    @property
    def abi_hash(self) -> str:
        """64 hex digits over everything above: program, kernels and weight table, not values."""
        return hashlib.sha256(repr((FORMAT_VERSION, self)).encode()).hexdigest()
