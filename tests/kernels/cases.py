"""CASES: nodes to try the library's kernels on, as graph text, and arrays for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.bundle.program import KV_BLOCK_TOKENS, KV_SCALE_BYTES, kv_tile_elements
from ondevice.dims import Extent
from ondevice.dtypes import DTYPES, i8
from ondevice.graph.attention import kv_write
from ondevice.graph.graph import Node, TensorType
from ondevice.graph.interpret import evaluate
from ondevice.graph.kv_pool import PoolLayer, pool_head_dim
from ondevice.graph.ops import ACTIVATIONS, OPS, quantize
from ondevice.graph.text import parse_graph
from ondevice.graph.verify import verify
from ondevice.kernels.packers import Packers
from ondevice.kernels.quantize import quantize_rows
from ondevice.lang.dsl import Chain
from ondevice.quant.layout import unpack
from ondevice.quant.scheme import SCHEMES, activation_shape

Array = npt.NDArray[Any]

BATCH, VOCAB = 2, 40  # conversations, rows of the embedding

PROMPT = "-prompt"  # tokens that follow each other over the end of a span of 256, and one other

PLAIN_INPUTS = """\
input x: f32[S, {n}]
input other: f32[S, {n}]
input scale: f32[S]
weight w: f32[{n}]
"""
ADDRESSING = """\
input positions: i32[S]
input sequence: i32[S]
input block_table: i32[B, {width}]
"""
MATMUL = """\
input x: f32[S, {k}]{x}
weight w: f32[{n}, {k}]:{w}
y: f32[S, {n}] = matmul(x, w)
"""
FUSED_MATMUL = """\
input x: f32[S, {k}]
input scale: f32[S]
input other: f32[S, {n}]
weight norm: f32[{k}]
weight bias: f32[{n}]
weight w: f32[{n}, {k}]:{w}
y: f32[S, {n}] = matmul(x, w)
  before normalize(_, scale, norm)
  before silu(_)
  after add_bias(_, bias)
  after silu(_)
  after mul(_, other)
  after add(_, other)
"""
FUSED_INT_MATMUL = """\
input x: f32[S, {k}]:a8_g64
input other: f32[S, {n}]
weight bias: f32[{n}]
weight w: f32[{n}, {k}]:{w}
y: f32[S, {n}] = matmul(x, w)
  after add_bias(_, bias)
  after add(_, other)
"""
EMBED = """\
input tokens: i32[S]
weight table: f32[40, {k}]:{w}
y: f32[S, {k}] = embed(tokens, table)
"""
KV_WRITE = """\
input k: f32[S, {features}]
input v: f32[S, {features}]
input angles: f32[S, {head_dim}]
input kv: {dtype}[P, 2, 2, {kv_heads}, {tile}]
kv.new: {dtype}[P, 2, 2, {kv_heads}, {tile}] = \
kv_write(kv, k, v, positions, sequence, block_table) {{layer=1}}
"""
ROPE = """\
  before rope(_, angles) {{heads={heads}, head_dim={head_dim}}}
"""
ATTENTION = """\
input q: f32[S, {features}]
input angles: f32[S, {head_dim}]
input kv: {dtype}[P, 2, 2, {kv_heads}, {tile}]
y: f32[S, {features}] = attention(q, kv, positions, sequence, block_table) \
{{layer=1, heads={heads}, kv_heads={kv_heads}, head_dim={head_dim}, scale={scale}}}
"""
IN_PARTS = {  # op of ATTENTION -> the other op, as replacements in the text
    "attention_parts": (("S, {features}] = attention(", "S, {parts}] = attention_parts("),),
    "attention_joined": (
        ("= attention(", "= attention_joined("),
        ("block_table) ", "block_table, parts) "),
        ("input kv", "input parts: f32[S, {parts}]\ninput kv"),
    ),
}


@dataclass(frozen=True)
class Case:
    """One node with its inputs; `values` holds quantized matrices as the floats they stand for."""

    name: str
    node: Node
    types: dict[str, TensorType]
    sizes: dict[str, int]
    values: dict[str, Array]
    packed: dict[str, Array]  # matrices of a scheme, as the kernel sees them

    @property
    def rows(self) -> int:
        return self.sizes[self.row_symbol]

    @cached_property
    def row_symbol(self) -> str:
        """The symbol that counts the rows of the result, or of what a state op stores."""
        counted = self.node.inputs[1] if OPS[self.node.op].state else self.node.output.name
        return self.types[counted].shape[0].terms[0][0]

    @property
    def result(self) -> str:
        """The value that is written: a state op changes its input."""
        return self.node.inputs[0] if OPS[self.node.op].state else self.node.output.name

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(d.evaluate(self.sizes) for d in self.types[name].shape)

    def reference(self) -> Array:
        """The result by the NumPy reference of the op."""
        return evaluate(self.node, self.values)

    def of_rows(self, begin: int, end: int) -> Case:
        """The same node for a part of the rows."""
        own = Extent.of(self.row_symbol)

        def cut(arrays: dict[str, Array]) -> dict[str, Array]:
            counts = {name: self.types[name].shape[0] == own for name in arrays}
            return {n: a[begin:end].copy() if counts[n] else a for n, a in arrays.items()}

        sizes = {**self.sizes, self.row_symbol: end - begin}
        return replace(self, sizes=sizes, values=cut(self.values), packed=cut(self.packed))


def kv_texts(head_dim: int, heads: int, kv_heads: int, dtype: str) -> Iterator[tuple[str, str]]:
    sizes: dict[str, Any] = {
        "features": kv_heads * head_dim,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "heads": kv_heads,
        "tile": kv_tile_elements(head_dim, DTYPES[dtype]),
        "dtype": dtype,
    }
    name = f"{heads}x{head_dim}/{kv_heads}-{dtype}"
    short, long = (ADDRESSING.format(width=width) for width in (2, 9))
    yield f"kv_write-{name}", short + KV_WRITE.format(**sizes)
    yield f"kv_write-{name}-fused", short + (KV_WRITE + ROPE).format(**sizes)
    sizes.update(features=heads * head_dim, heads=heads)
    text = ATTENTION.format(**sizes, scale=head_dim**-0.5)
    yield f"attention-{name}-fused", short + text + ROPE.format(**sizes)
    yield f"attention-{name}", short + text
    if dtype == "f32" or (dtype == "i8" and kv_heads == 1):  # what they add is in the short ones
        return
    yield f"attention-{name}{PROMPT}", long + text
    yield f"attention-{name}-fused{PROMPT}", long + text + ROPE.format(**sizes)
    for op, replacements in IN_PARTS.items():
        changed = ATTENTION
        for old, new in replacements:
            changed = changed.replace(old, new)
        changed = changed.format(**sizes, scale=head_dim**-0.5, parts=2 * heads * (head_dim + 2))
        yield f"{op}-{name}{PROMPT}", long + changed
        yield f"{op}-{name}-fused{PROMPT}", long + changed + ROPE.format(**sizes)


def texts() -> Iterator[tuple[str, str]]:
    """(name, graph text without its first and last line) of every case."""
    for op in ("add(x, other)", "mul(x, other)", "silu(x)", "add_bias(x, w)"):
        for n in (40, 172):
            text = PLAIN_INPUTS.format(n=n) + f"y: f32[S, {n}] = {op}\n"
            yield f"{op.split('(')[0]}-{n}", text
    for n in (8, 172):
        inputs = PLAIN_INPUTS.format(n=n)
        yield f"normalize-{n}", inputs + f"y: f32[S, {n}] = normalize(x, scale, w)\n"
        yield f"rmsnorm-{n}", inputs + f"y: f32[S, {n}] = rmsnorm(x, w) {{eps=1e-05}}\n"
        yield f"rms_scale-{n}", inputs + "y: f32[S] = rms_scale(x) {eps=1e-05}\n"
        yield f"quantize-{n}", inputs + f"y: f32[S, {n}]:a8_g64 = quantize(x)\n"
        text = f"input x: f32[S, {n}]\ninput rows: i32[L]\n"
        yield f"select_rows-{n}", text + f"y: f32[L, {n}] = select_rows(x, rows)\n"
    fused = "  before normalize(_, scale, w)\n"
    yield (
        "quantize-fused",
        PLAIN_INPUTS.format(n=40) + f"y: f32[S, 40]:a8_g64 = quantize(x)\n{fused}",
    )
    for head_dim, heads in ((2, 3), (8, 4), (40, 1)):
        n = heads * head_dim
        text = f"input x: f32[S, {n}]\ninput angles: f32[S, {head_dim}]\n"
        call = f"rope(x, angles) {{heads={heads}, head_dim={head_dim}}}\n"
        yield f"rope-{heads}x{head_dim}", f"{text}y: f32[S, {n}] = {call}"
    for dtype in ("f32", "f16", "i8"):
        for sizes in ((8, 4, 2), (20, 3, 1)):
            yield from kv_texts(*sizes, dtype)
    for w in SCHEMES:
        yield f"embed-{w}", EMBED.format(k=44, w=w)
        for k, n in ((172, 8), (20, 72), (8, 17)):
            yield f"matmul-{w}-{n}x{k}", MATMUL.format(k=k, n=n, w=w, x="")
        yield f"matmul-{w}-fused", FUSED_MATMUL.format(k=20, n=40, w=w)
        if SCHEMES[w].group_size:
            yield f"matmul-{w}-int", MATMUL.format(k=172, n=24, w=w, x=":a8_g64")
            yield f"matmul-{w}-int-fused", FUSED_INT_MATMUL.format(k=44, n=40, w=w)


CASES = dict(texts())


@cache
def case(name: str, rows: int) -> Case:
    """The case of this name for so many rows; equal arguments give equal arrays."""
    body = CASES[name]
    result = [line for line in body.splitlines() if not line.startswith(("input", "weight", " "))]
    graph = verify(parse_graph(f'graph "case"\n{body}return ({result[0].split(":")[0]})\n'))
    rng = np.random.default_rng(rows)
    width = next((v.type.shape[1].static for v in graph.inputs if v.name == "block_table"), 0)
    sizes = {"S": rows, "L": rows + 3, "B": BATCH, "P": BATCH * (width or 0)}
    values, packed = {}, {}
    for value in (*graph.inputs, *graph.weights):
        shape = tuple(d.evaluate(sizes) for d in value.type.shape)
        values[value.name] = random_array(rng, value.name, value.type, shape)
        if value.type.scheme:
            if value.type.scheme == ACTIVATIONS:
                values[value.name] = quantize(values[value.name])
            else:
                kept = weights(values[value.name], value.type.scheme)
                values[value.name], packed[value.name] = kept
    if name.endswith(PROMPT):
        values["positions"], values["sequence"] = prompt(rows)
    node, types = graph.nodes[0], graph.types()
    if node.op.startswith("attention"):
        values["kv"] = written_cache(rng, values, layer=1)
        sizes["T"] = int(values["positions"].max()) // 256 + 1
    if node.op == "attention_joined":
        whole = replace(node, op="attention_parts", inputs=node.inputs[:5])
        values["parts"] = evaluate(whole, values)
    return Case(name, node, types, sizes, values, packed)


def random_array(
    rng: np.random.Generator, name: str, type_: TensorType, shape: tuple[int, ...]
) -> Array:
    """Normal floats; indices by name, those of a ragged batch out of order."""
    if name == "tokens":
        return rng.integers(0, VOCAB, shape, np.int32)
    if name == "rows":
        return rng.integers(0, shape[0] - 3, shape, np.int32)  # L = S + 3
    if name == "sequence":
        return (np.arange(shape[0]) % BATCH).astype(np.int32)
    if name == "positions":  # different ones within a conversation, in both of its blocks
        return (np.arange(shape[0]) // BATCH * 29 % 64).astype(np.int32)
    if name == "block_table":
        return rng.permutation(shape[0] * shape[1]).astype(np.int32).reshape(shape)
    values = rng.standard_normal(shape).astype(np.float32)
    return pool(values) if name == "kv" and type_.dtype == i8 else values.astype(type_.dtype.np)


def pool(values: Array) -> Array:
    """int8 tiles whose last 32 floats are scales."""
    codes = (values * 20).astype(np.int8)
    codes[..., -KV_SCALE_BYTES:] = values[..., -KV_BLOCK_TOKENS:].copy().view(np.int8)
    return codes


def prompt(rows: int) -> tuple[Array, Array]:
    """(positions, sequence) of a prompt that starts before a span ends, and of a token behind it"""
    positions = np.arange(253, 253 + rows, dtype=np.int32)
    sequence = np.ones(rows, np.int32)
    if rows > 1:
        positions[-1], sequence[-1] = 34, 0
    return positions, sequence


def weights(values: Array, scheme: str) -> tuple[Array, Array]:
    """(the values that are kept, the packed matrix)."""
    row = SCHEMES[scheme]
    packed = Packers().pack(values, row)
    shaped = np.frombuffer(packed, row.dtype.np).reshape(row.packed_shape(*values.shape))
    return unpack(packed, row, *values.shape), shaped


def packed_activations(values: Array, tile: int) -> Array:
    """Quantized activations as kernels see them, `tile` rows together."""
    shape = activation_shape(Extent.of(len(values)), values.shape[1], tile)
    packed = np.zeros([d.evaluate({}) for d in shape], np.uint8)
    quantize_rows(values, packed, prologue=Chain(), staged=False, tile=tile)
    return packed


def dequantized(packed: Array, rows: int, columns: int) -> Array:
    """The floats that packed activations stand for."""
    tiles, groups, lines, bytes_ = packed.shape
    tile = lines * bytes_ // 80
    flat = packed.reshape(tiles, groups, -1)
    codes = flat[..., : tile * 64].view(np.int8).astype(np.float32)
    scales = np.ascontiguousarray(flat[..., tile * 64 : tile * 68]).view(np.float32)
    values = codes.reshape(tiles, groups, tile, 64) * scales[..., None]
    return values.swapaxes(1, 2).reshape(tiles * tile, -1)[:rows, :columns]


def pool_values(kv: Array) -> Array:
    """What a pool of int8 tiles stands for, as one array."""
    parts = []
    for layer in (PoolLayer(kv, i) for i in range(kv.shape[1])):
        parts += [
            layer.keys * layer.key_scales[:, :, None, :],
            layer.values * layer.value_scales[..., None],
        ]
    return np.concatenate([part.reshape(-1) for part in parts])


def unwritten(shape: tuple[int, ...]) -> Array:
    """int8 tiles whose bytes are all ones: no token has a scale, which is NaN."""
    return np.full(shape, -1, np.int8)


def written_cache(rng: np.random.Generator, values: dict[str, Array], layer: int) -> Array:
    """A pool that is NaN but for positions up to the last one that a token looks at."""
    kv, positions, sequence = values["kv"], values["positions"], values["sequence"]
    ends = [positions[sequence == b].max(initial=-1) + 1 for b in range(BATCH)]
    where = np.array([(p, b) for b in range(BATCH) for p in range(ends[b])], np.int32)
    features = kv.shape[3] * pool_head_dim(kv)
    k, v = rng.standard_normal((2, len(where), features)).astype(np.float32)
    empty = np.full(kv.shape, np.nan, kv.dtype) if kv.dtype != np.int8 else unwritten(kv.shape)
    return kv_write(empty, k, v, where[:, 0], where[:, 1], values["block_table"], layer=layer)
