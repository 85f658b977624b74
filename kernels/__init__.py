"""LIBRARY: every kernel, the op it computes, and how a node's tensors become its buffers.

Rows for one op stand from the general to the special; `select` takes them by number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ondevice.dims import Extent
from ondevice.dtypes import DType, f16, f32, i8
from ondevice.graph.graph import Attrs, Node
from ondevice.graph.ops import ACTIVATIONS
from ondevice.kernels.attention import (
    attention,
    attention_join,
    attention_parts,
    attention_tile,
)
from ondevice.kernels.elementwise import add, add_bias, elementwise, mul, normalize, silu
from ondevice.kernels.embed import embed_float, embed_int, select_rows
from ondevice.kernels.kv_write import kv_write
from ondevice.kernels.matmul import matmul_float
from ondevice.kernels.matmul_int import matmul_dequant, matmul_int, matmul_plane
from ondevice.kernels.norm import rms_scale, rmsnorm
from ondevice.kernels.quantize import quantize_rows
from ondevice.kernels.rope import pairwise, rotate
from ondevice.lang.library import Binding, KernelDef, Library, Types, View
from ondevice.quant.scheme import (
    ACTIVATION_TILE,
    SCHEMES,
    Scheme,
    activation_shape,
    is_integer,
)

FLOAT_SCHEMES = {"f32": f32, "f16": f16}
INT_LIVE = (1, 4)  # in the innermost loop: dots; codes as stored, their halves, activations
PLANE_LIVE = (1, 1)  # dots; codes
INT_SHARED = ("G", "NB", "ROW", "N")  # of weights: one code for all matrices of a scheme
FEW_ROWS = ((2, 4), (4, 2), (8, 2))  # up to so many rows, so many blocks of weights at once
ATTENTION_TILE = (
    ("tokens", 1),
    ("heads", 1),
    ("rows", 1),
    ("keys", 2),
    ("columns", 2),
    ("signed", False),
)
ATTENTION_TOKENS = 32  # more than any tile has
ATTENTION_ROWS = 8  # up to so many tokens, which may be of as many conversations, each for itself
GEMV_ROWS = 4  # up to so many rows, a row at a time reads the weights as fast as they come


def plain(node: Node, types: Types) -> tuple[View, ...]:
    """Inputs in order, then the output, as the graph sees them."""
    names = (*node.inputs, node.output.name)
    return tuple(View(name, types[name].shape) for name in names)


def packed(name: str, types: Types) -> View:
    """A weight matrix as its scheme stores it."""
    rows, columns = (d.static or 0 for d in types[name].shape)
    shape = SCHEMES[types[name].scheme].packed_shape(rows, columns)
    return View(name, tuple(map(Extent.of, shape)))


def by_head(name: str, types: Types, heads: int) -> View:
    """[S, H * D] seen as [S, H, D]."""
    rows, features = types[name].shape
    return View(name, (rows, Extent.of(heads), Extent.of((features.static or 0) // heads)))


def bind_plain(node: Node, types: Types) -> Binding:
    return Binding(plain(node, types))


def bind_norm(node: Node, types: Types) -> Binding:
    return Binding(plain(node, types), {"eps": float(node.attr("eps"))})


def bind_elementwise(node: Node, types: Types) -> Binding:
    """The anchor is the copy of its input; the op itself stands in the epilogue."""
    return Binding(tuple(View(n, types[n].shape) for n in (node.inputs[0], node.output.name)))


def bind_embed_float(node: Node, types: Types) -> Binding | None:
    tokens, table, y = *node.inputs, node.output.name
    dtype = FLOAT_SCHEMES.get(types[table].scheme)
    if dtype is None:
        return None
    views = View(tokens, types[tokens].shape), packed(table, types), View(y, types[y].shape)
    return Binding(views, {"W": dtype})


def bind_matmul_float(node: Node, types: Types) -> Binding | None:
    x, w, y = *node.inputs, node.output.name
    dtype = FLOAT_SCHEMES.get(types[w].scheme)
    if dtype is None or types[x].scheme:
        return None
    views = View(x, types[x].shape), packed(w, types), View(y, types[y].shape)
    return Binding(views, {"W": dtype, "staged": bool(node.prologue)})


def coding(scheme: Scheme) -> dict[str, int | bool]:
    """What a kernel must know of the codes of an integer scheme."""
    return {"bits": scheme.bits, "minima": scheme.minima}


def quantized(name: str, types: Types, tile: int) -> View:
    """Activations as groups of int8 codes, `tile` rows together."""
    rows, columns = types[name].shape
    return View(name, activation_shape(rows, columns.static or 0, tile))


def bind_quantize(tile: int, node: Node, types: Types) -> Binding:
    x, y = node.inputs[0], node.output.name
    views = View(x, types[x].shape), quantized(y, types, tile)
    return Binding(views, {"staged": bool(node.prologue), "tile": tile})


def bind_embed_int(node: Node, types: Types) -> Binding | None:
    tokens, table, y = *node.inputs, node.output.name
    if not is_integer(types[table].scheme):
        return None
    views = View(tokens, types[tokens].shape), packed(table, types), View(y, types[y].shape)
    return Binding(views, coding(SCHEMES[types[table].scheme]))


def bind_matmul_int(
    tile: int, ways: Mapping[str, bool], node: Node, types: Types
) -> Binding | None:
    """Integer weights and int8 activations, `tile` rows together; `ways` are of the CPU."""
    x, w, y = *node.inputs, node.output.name
    if types[x].scheme != ACTIVATIONS or not is_integer(types[w].scheme):
        return None
    views = quantized(x, types, tile), packed(w, types), View(y, types[y].shape)
    return Binding(views, {**coding(SCHEMES[types[w].scheme]), **ways})


def bind_matmul_dequant(node: Node, types: Types) -> Binding | None:
    """Integer weights and float activations."""
    x, w, y = *node.inputs, node.output.name
    if types[x].scheme or not is_integer(types[w].scheme):
        return None
    views = View(x, types[x].shape), packed(w, types), View(y, types[y].shape)
    return Binding(views, {**coding(SCHEMES[types[w].scheme]), "staged": bool(node.prologue)})


def bind_pairwise(node: Node, types: Types) -> Binding:
    """The anchor is the copy of its input; the op itself stands in the hole."""
    heads = int(node.attr("heads"))
    names = node.inputs[0], node.output.name
    return Binding(tuple(by_head(name, types, heads) for name in names))


def kv_coding(kv: str, types: Types) -> dict[str, DType | bool]:
    """What a kernel must know of the elements of the KV pool."""
    return {"KV": types[kv].dtype, "scaled": types[kv].dtype == i8}


def bind_kv_write(node: Node, types: Types) -> Binding:
    kv, k, v, *addressing = node.inputs
    kv_heads = types[kv].shape[3].static or 0
    views = (
        View(kv, types[kv].shape),
        by_head(k, types, kv_heads),
        by_head(v, types, kv_heads),
        *(View(name, types[name].shape) for name in addressing),
    )
    constants = {**kv_coding(kv, types), "staged": bool(node.prologue)}
    return Binding(views, constants, {"layer": int(node.attr("layer"))})


def bind_attention(node: Node, types: Types) -> Binding:
    """`attention_joined` too, whose parts a kernel for the whole does without."""
    q, kv, *addressing = node.inputs[:5]
    heads = int(node.attr("heads"))
    views = (
        by_head(q, types, heads),
        View(kv, types[kv].shape),
        *(View(name, types[name].shape) for name in addressing),
        by_head(node.output.name, types, heads),
    )
    constants = {
        **kv_coding(kv, types),
        "scale": float(node.attr("scale")),
        "staged": bool(node.prologue),
    }
    return Binding(views, constants, {"layer": int(node.attr("layer"))})


def by_span(name: str, types: Types, node: Node) -> View:
    """Parts of an attention, as [S, spans, H, D + 2]."""
    rows, features = types[name].shape
    heads, part = int(node.attr("heads")), int(node.attr("head_dim")) + 2
    spans = (features.static or 0) // (heads * part)
    return View(name, (rows, *map(Extent.of, (spans, heads, part))))


def bind_attention_parts(node: Node, types: Types) -> Binding:
    whole = bind_attention(node, {**types, node.output.name: types[node.inputs[0]]})
    views = (*whole.views[:-1], by_span(node.output.name, types, node))
    return Binding(views, whole.constants, {**whole.scalars, "spans": "T"})


def bind_attention_join(node: Node, types: Types) -> Binding:
    heads = int(node.attr("heads"))
    parts, positions = node.inputs[5], node.inputs[2]
    y = by_head(node.output.name, types, heads)
    return Binding((by_span(parts, types, node), View(positions, types[positions].shape), y))


def fit_attention(
    tokens: int, node: Node, types: Types, room: int, least: int, features: frozenset[str]
) -> Attrs:
    """Tiles of up to so many tokens."""
    shared = int(node.attr("heads")) // int(node.attr("kv_heads"))
    tile = attention_tile(shared, int(node.attr("head_dim")), room, least, tokens, features)
    return tuple(tile.items())


def int_rows(name: str, most: int, tile: Attrs) -> tuple[KernelDef, ...]:
    """Integer products of `most` rows or a few less: for any CPU, and for those of Arm."""

    def row(suffix: str, signed: bool, whole: bool, **cpu: Any) -> KernelDef:
        together = int(dict(tile)["tile"])
        ways = {"signed": signed, "whole": whole}
        return KernelDef(
            name + suffix, "matmul", matmul_int, partial(bind_matmul_int, together, ways), tile,
            min_rows=most // 2 + 1 if most > 1 else 0, max_rows=most, holes=("epilogue",),
            live=INT_LIVE, shared=INT_SHARED, **cpu,
        )  # fmt: skip

    neon, i8mm = frozenset({"neon"}), frozenset({"i8mm"})
    return (
        row("", False, False),
        row("_neon", True, True, instead_of=name, needs=neon, lacks=i8mm),
        row("_i8mm", False, True, instead_of=name, needs=i8mm),
    )


MATMUL_HOLES = ("prologue", "epilogue")
ROWS = (
    KernelDef("embed", "embed", embed_float, bind_embed_float),
    KernelDef("select_rows", "select_rows", select_rows, bind_plain),
    KernelDef("rmsnorm", "rmsnorm", rmsnorm, bind_norm),
    KernelDef("rms_scale", "rms_scale", rms_scale, bind_norm, chunk=16),  # of a line of scales
    KernelDef(
        "gemv", "matmul", matmul_float, bind_matmul_float,
        (("tokens", 1), ("blocks", 4)), max_rows=GEMV_ROWS, holes=MATMUL_HOLES,
    ),
    KernelDef(
        "gemm", "matmul", matmul_float, bind_matmul_float,
        (("tokens", 6), ("blocks", 2)), min_rows=GEMV_ROWS + 1, holes=MATMUL_HOLES, chunk=16,
    ),
    KernelDef(
        "quantize_row", "quantize", quantize_rows, partial(bind_quantize, 1),
        max_rows=1, holes=("prologue",),
    ),
    KernelDef(
        "quantize", "quantize", quantize_rows, partial(bind_quantize, ACTIVATION_TILE),
        min_rows=2, holes=("prologue",), chunk=ACTIVATION_TILE,  # no line has two writers
    ),
    KernelDef("embed_int", "embed", embed_int, bind_embed_int),
    *int_rows(
        "gemv_int", 1,
        (("tile", 1), ("strip", 1), ("tokens", 1), ("blocks", 4), ("ahead", 4)),
    ),
    *(
        row
        for most, blocks in FEW_ROWS
        for row in int_rows(
            f"gemm_int_{most}", most,
            (
                ("tile", ACTIVATION_TILE), ("strip", 4 // blocks), ("tokens", most),
                ("blocks", blocks), ("ahead", 4),
            ),
        )
    ),
    KernelDef(
        "gemm_int", "matmul", matmul_plane,
        partial(bind_matmul_int, ACTIVATION_TILE, {"signed": False, "matrix": False}),
        (("strip", 2), ("tiles", 16), ("tokens", 8)),
        min_rows=FEW_ROWS[-1][0] + 1, holes=("epilogue",), live=PLANE_LIVE, shared=INT_SHARED,
    ),
    KernelDef(
        "gemm_int_tile", "matmul", matmul_plane,
        partial(bind_matmul_int, ACTIVATION_TILE, {"signed": True, "matrix": True}),
        (("strip", 2), ("tiles", 16), ("tokens", 16)),
        holes=("epilogue",), instead_of="gemm_int", shared=INT_SHARED, live=(0, 0),
        needs=frozenset({"amx-tile", "amx-int8"}),
    ),
    KernelDef(
        "gemm_int_signed", "matmul", matmul_plane,
        partial(bind_matmul_int, ACTIVATION_TILE, {"signed": True, "matrix": False}),
        (("strip", 2), ("tiles", 16), ("tokens", 8)),
        holes=("epilogue",), instead_of="gemm_int", shared=INT_SHARED, live=PLANE_LIVE,
        lacks=frozenset({"avx512vnni", "avxvnni"}),  # products of bytes of different signs
    ),
    KernelDef(
        "gemv_dequant", "matmul", matmul_dequant, bind_matmul_dequant,
        (("tokens", 1), ("blocks", 2)), max_rows=1, holes=MATMUL_HOLES, live=INT_LIVE,
    ),
    KernelDef(
        "gemm_dequant", "matmul", matmul_dequant, bind_matmul_dequant,
        (("tokens", 4), ("blocks", 1)), min_rows=2, holes=MATMUL_HOLES, live=INT_LIVE,
    ),
    KernelDef("pairwise_rope", "rope", pairwise, bind_pairwise, holes=("apply",), chunk=8),
    KernelDef("kv_write", "kv_write", kv_write, bind_kv_write, holes=("pairs",), chunk=32),
    KernelDef(
        "attention", "attention", attention, bind_attention, ATTENTION_TILE,
        max_rows=ATTENTION_ROWS, holes=("pairs",), fit=partial(fit_attention, 1),
    ),
    KernelDef(
        "attention_parts", "attention_parts", attention_parts, bind_attention_parts,
        ATTENTION_TILE, max_rows=ATTENTION_ROWS, min_spans=2, holes=("pairs",),
        fit=partial(fit_attention, 1),
    ),
    KernelDef(
        "attention_near", "attention_joined", attention, bind_attention, ATTENTION_TILE,
        max_rows=ATTENTION_ROWS, max_spans=1, holes=("pairs",), fit=partial(fit_attention, 1),
    ),
    KernelDef(
        "attention_join", "attention_joined", attention_join, bind_attention_join,
        max_rows=ATTENTION_ROWS, min_spans=2, holes=("pairs",),
    ),
    KernelDef(
        "attention_joined_tiles", "attention_joined", attention, bind_attention,
        (("tokens", 4), ("heads", 1), ("rows", 4), *ATTENTION_TILE[3:]),
        min_rows=ATTENTION_ROWS + 1, holes=("pairs",),
        fit=partial(fit_attention, ATTENTION_TOKENS),
    ),
    KernelDef(
        "attention_tiles", "attention", attention, bind_attention,
        (("tokens", 4), ("heads", 1), ("rows", 4), *ATTENTION_TILE[3:]),
        min_rows=ATTENTION_ROWS + 1, holes=("pairs",), fit=partial(fit_attention, ATTENTION_TOKENS),
    ),
    *(
        KernelDef(
            f"elementwise_{op}", op, elementwise, bind_elementwise,
            (("width", 512),), holes=("apply",),
        )
        for op in ("add", "mul", "silu", "add_bias", "normalize")
    ),
)  # fmt: skip

LIBRARY = Library(
    {row.name: row for row in ROWS},
    {
        "add": add,
        "mul": mul,
        "silu": silu,
        "add_bias": add_bias,
        "normalize": normalize,
        "rope": rotate,
    },
)
