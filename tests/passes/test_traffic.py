"""Bytes that launches move, against a count by hand; and that they decide what is fused."""

from __future__ import annotations

from typing import Any

from ondevice.dtypes import f32, i32
from ondevice.graph.builder import GraphBuilder
from ondevice.graph.graph import Graph, TensorType
from ondevice.passes.fuse import fuse, fuse_by_bytes
from ondevice.passes.report import report_program
from ondevice.passes.traffic import Step, Traffic, graph_traffic

from .models import CONTEXT, traced

ROWS = 10
K, N = 64, 48
X, Y = 4 * ROWS * K, 4 * ROWS * N  # bytes of activations f32[S, K] and f32[S, N]
NORM, MATRIX = 4 * K, 4 * N * K


def tiny(matrices: int = 1) -> Graph:
    """x = table[tokens]; y = silu(norm(x) @ a) (+ norm(x) @ b ...)."""
    types = {"table": TensorType.of(f32, 32, K, scheme="f32"), "norm": TensorType.of(f32, K)}
    names = [f"matrix.{i}" for i in range(matrices)]
    types |= {name: TensorType.of(f32, N, K, scheme="f32") for name in names}
    build = GraphBuilder("tiny", types)
    x = build.node("embed", build.input("tokens", TensorType.of(i32, "S")), build.weight("table"))
    scale = build.node("rms_scale", x, eps=1e-5, name="scale")
    normed = build.node("normalize", x, scale, build.weight("norm"))
    products = [build.node("matmul", normed, build.weight(name), name=name) for name in names]
    y = build.node("silu", products[0])
    for i, other in enumerate(products[1:]):
        y = build.node("add", y, other, name=f"add.{i}")
    return build.finish(build.node("silu", y, name="last"))


def test_bytes_are_those_counted_by_hand() -> None:
    moved = graph_traffic(tiny(), Step(ROWS))
    scale = 4 * ROWS
    # Read: tokens, x by rms_scale and normalize, the scale, normalize's result, two times y.
    read = 4 * ROWS + X + (X + scale) + X + Y + Y
    written = X + scale + X + Y + Y + Y
    rows_of_table = ROWS * 4 * K
    assert moved == Traffic(read, written, rows_of_table + NORM + MATRIX, 0)


def test_fusion_saves_what_is_neither_written_nor_read() -> None:
    before, (after, fusions) = tiny(), fuse_by_bytes(tiny(), CONTEXT)
    assert [node.op for node in after.nodes] == ["embed", "rms_scale", "matmul"]
    step = Step(ROWS)
    saved = graph_traffic(before, step).total - graph_traffic(after, step).total
    assert saved == 2 * X + 2 * Y + 2 * Y  # the norm, and both sides of the first silu
    prompt = [(fusion.op, fusion.saved_by_prompt * ROWS // 512) for fusion in fusions]
    assert prompt == [("silu", 2 * Y), ("silu", 2 * Y), ("normalize", 2 * X)]


def test_what_many_read_is_fused_while_it_pays() -> None:
    """normalize reads a scale, and its weights, again for each reader that computes it."""

    def fused(matrices: int, rows: int) -> tuple[bool, int]:
        (last,) = (f for f in fuse_by_bytes(tiny(matrices), CONTEXT)[1] if f.op == "normalize")
        again = (matrices - 1) * (4 * rows + NORM)
        saved = last.saved_by_prompt if rows == 512 else last.saved_by_token
        assert saved == 2 * 4 * rows * K - again
        return last.done, saved

    assert fused(3, 512)[0] and fused(3, 1)[1] < 0  # what it costs a token, a prompt saves
    assert not fused(200, 512)[0]
    graph = fuse(tiny(200), CONTEXT)
    assert [n.op for n in graph.nodes[:3]] == ["embed", "rms_scale", "normalize"]


def test_a_pass_that_finds_nothing_to_save_changes_nothing() -> None:
    done = fuse(tiny(), CONTEXT)
    assert fuse_by_bytes(done, CONTEXT) == (done, ())


def report(name: str, disabled: tuple[str, ...] = ()) -> dict[str, Any]:
    model = traced(name)
    stages = {"trace": model.graph, **dict(model.after_each_pass(disabled))}
    program, _ = model.program(disabled)
    return report_program(stages, program, CONTEXT).figures()


def test_the_report_of_a_model() -> None:
    figures = report("qwen2-int8")
    prompt, token = figures["steps"]
    for step in (prompt, token):
        parts = [step[stage] for stage in ("traced", "fused")]
        read, fewer = (part["read_bytes_per_token"] for part in parts)
        assert 0 < fewer < read
        assert parts[0]["weights_bytes_per_token"] == parts[1]["weights_bytes_per_token"]
        assert step["cached_bytes_per_token"] > 0
    assert (
        prompt["barriers"]
        > token["barriers"]
        == traced("qwen2-int8").program()[0].barriers({"S": 1, "L": 1, "B": 1, "P": 1, "T": 1})[0]
    )
    silu = next(f for f in figures["fusions"] if f["op"] == "silu")
    assert silu["source"] == "layers.*.mlp.silu" and silu["count"] == 2
    # Two layers of f32[64, 20], neither written nor read.
    assert silu["saved_by_token"] == 2 * 2 * 4 * 20 and silu["done"]


def test_without_fusion_nothing_is_saved() -> None:
    figures = report("llama", disabled=("fuse",))
    assert figures["fusions"] == []
    # canonicalize alone: rms_scale and normalize read x twice where rmsnorm reads it once
    assert all(step["fused"] != step["traced"] for step in figures["steps"])
