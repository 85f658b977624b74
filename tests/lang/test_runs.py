"""Counted work is what a run statement by statement does, crossings what a cache would miss."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache

import pytest

from ondevice import targets
from ondevice.codegen.emit import emit_assembly
from ondevice.codegen.llvm import print_function, print_module
from ondevice.graph.text import parse_graph
from ondevice.kernels import LIBRARY
from ondevice.lang import kernel_ir as ir
from ondevice.lang.evaluate import evaluate, task_count
from ondevice.lang.library import instantiate
from ondevice.lang.runs import Launched
from ondevice.lang.text import parse_kernel
from ondevice.lang.work import pieces, walk_pieces

GRAPH = """\
graph "one"
input x: f32[S, {columns}]:a8_g64
weight w: f32[{outputs}, {columns}]:int4_g32
y: f32[S, {outputs}] = matmul(x, w)
return (y)
"""
Place = tuple[str, int]  # a buffer and an element of it, row-major


@cache
def product(row: str, rows: int, outputs: int, columns: int, **tile: int) -> Launched:
    graph = parse_graph(GRAPH.format(outputs=outputs, columns=columns))
    chosen = LIBRARY.kernels[row]
    schedule = tuple((name, tile.get(name, value)) for name, value in chosen.tile)
    instance = instantiate(LIBRARY, chosen, graph.nodes[0], graph.types(), schedule)
    sizes = [extent.evaluate({"S": rows}) for extent in instance.scalars]
    scalars = dict(zip(instance.kernel.scalars, sizes, strict=True))
    return Launched(instance.kernel, pieces(instance.kernel), scalars)


PRODUCTS = {
    "gemv": lambda: product("gemv_int", 1, 128, 576),
    "few rows": lambda: product("gemm_int_8", 7, 96, 320, tokens=4),
    "many rows": lambda: product("gemm_int", 40, 48, 1216, tiles=2, tokens=4),
    "matrix unit": lambda: product("gemm_int_tile", 40, 48, 1216, tiles=2),
}


def total(sizes: Mapping[str, int]) -> int:
    return sum(sizes.values())


@cache
def trace(name: str) -> tuple[tuple[str, list[Place]], ...]:
    """Every load, store and product of all tasks, in order, and the elements that it touches."""
    launched = PRODUCTS[name]()
    kernel, steps = launched.kernel, Steps(launched)
    found: list[tuple[str, list[Place]]] = []
    for task in range(task_count(kernel, launched.scalars)):
        known, left = dict(launched.scalars), task
        for variable, extent in reversed(list(zip(kernel.tasks, launched.extents, strict=True))):
            left, known[variable] = divmod(left, extent)
        found += steps.run(kernel.body, known)
    return tuple(found)


class Steps:
    """Runs statements one by one, without data."""

    def __init__(self, launched: Launched) -> None:
        buffers = (*launched.kernel.buffers, *launched.kernel.scratch)
        sizes = launched.scalars
        self.dims = {b.name: [sizes.get(d, d) for d in b.dims] for b in buffers}  # type: ignore[arg-type]
        self.widths = {b.name: b.dtype.bytes for b in buffers}

    def run(
        self, body: tuple[ir.Stmt, ...], known: dict[str, int]
    ) -> Iterator[tuple[str, list[Place]]]:
        for statement in body:
            if isinstance(statement, ir.For):
                ends = evaluate(statement.start, known), evaluate(statement.stop, known)
                for number in range(*ends, statement.step):
                    yield from self.run(statement.body, {**known, statement.name: number})
            elif isinstance(statement, ir.If):
                taken = evaluate(statement.condition, known)
                yield from self.run(statement.then if taken else statement.orelse, known)
            else:
                yield from self.one(statement, known)

    def one(self, statement: ir.Stmt, known: dict[str, int]) -> Iterator[tuple[str, list[Place]]]:
        match statement:
            case ir.Assign(name, value):
                yield from self.parts(value, known)
                if value.type in (ir.INDEX, ir.BOOL):
                    known[name] = evaluate(value, known)
            case ir.Store(buffer, at, value):
                yield from self.parts(value, known)
                yield "store", self.places(buffer, at, value.type.bits // 8, known)
            case ir.DotTile(out, out_at, rows, rows_at, columns, columns_at):
                places = [(rows, rows_at), (columns, columns_at), (out, out_at)]
                yield "dot_tile", [p for b, at in places for p in self.places(b, at, 1024, known)]

    def parts(self, expr: ir.Expr, known: Mapping[str, int]) -> Iterator[tuple[str, list[Place]]]:
        if isinstance(expr, ir.Load):
            size = expr.type.bits // 8
            yield "load", self.places(expr.buffer, expr.indices, size, known)
        elif isinstance(expr, ir.Op):
            for part in expr.args:
                yield from self.parts(part, known)
            if expr.name.startswith("dot4"):
                yield expr.name, []

    def places(
        self, buffer: str, at: tuple[ir.Expr, ...], size: int, known: Mapping[str, int]
    ) -> list[Place]:
        offset = 0
        for index, dim in zip((*at, *[ir.Const(ir.INDEX, 0)] * 2), self.dims[buffer], strict=False):
            offset = offset * dim + evaluate(index, known)
        return [(buffer, offset + i) for i in range(-(-size // self.widths[buffer]))]


def counted(launched: Launched) -> Counter[str]:
    total: Counter[str] = Counter()
    for piece in walk_pieces(launched.piece):
        for operation, count in piece.operations.items():
            runs = launched.executions.get(id(piece), 0)
            total[operation.name] += count * runs  # type: ignore[assignment]
    return total


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_stores_are_those_that_a_run_does(name: str) -> None:
    launched = PRODUCTS[name]()
    ours, run = counted(launched), Counter(kind for kind, _ in trace(name))
    kinds = [k for k in run if k == "store" or k.startswith("dot")]
    assert len(kinds) >= 2
    for kind in kinds:  # masked rows at the end are sampled
        assert ours[kind] == pytest.approx(run[kind], rel=0.1), kind
    assert 0 < ours["load"] <= 1.1 * run["load"]  # those that are equal are done once


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_cache_for_everything_is_crossed_once_by_what_is_touched(name: str) -> None:
    launched = PRODUCTS[name]()
    widths = {b.name: b.dtype.bytes for b in (*launched.kernel.buffers, *launched.kernel.scratch)}
    touched = {place for _, places in trace(name) for place in places}
    size = sum(widths[buffer] for buffer, _ in touched)
    # Boxes around what is touched: a footprint may be too large, not too small.
    assert 0.99 * size <= total(launched.crossing(1 << 30)) <= 1.3 * size


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("capacity", [4096, 12288, 49152])
def test_crossings_are_about_the_misses_of_a_cache(name: str, capacity: int) -> None:
    """Against lines of 64 bytes that leave when they were not used for longest."""
    launched = PRODUCTS[name]()
    widths = {b.name: b.dtype.bytes for b in (*launched.kernel.buffers, *launched.kernel.scratch)}
    lines: OrderedDict[Place, None] = OrderedDict()
    misses = 0
    for _, places in trace(name):
        for line in dict.fromkeys((b, at * widths[b] // 64) for b, at in places):
            misses += line not in lines
            lines[line] = None
            lines.move_to_end(line)
            if len(lines) > capacity // 64:
                lines.popitem(last=False)
    # Where data just does not fit, all of it counts as missing, and a part is still there.
    assert 0.5 < total(launched.crossing(capacity)) / (64 * misses) < 3


def test_products_in_code_are_those_counted() -> None:
    """As many instructions as the compiler writes: equal operations are one, none is lost."""
    kernel = PRODUCTS["gemv"]().kernel
    variant = next(v for v in targets.load("linux-x86_64").cpu.variants if v.name == "avx512vnni")
    function = print_function(kernel, "kernel", frozenset(variant.features))
    assembly = emit_assembly(print_module([function], "x86_64-unknown-linux-gnu"),
                             "x86_64-unknown-linux-gnu")  # fmt: skip
    total: Counter[str] = Counter()
    for piece in walk_pieces(pieces(kernel)):
        for operation, count in piece.operations.items():
            total[operation.name] += count
    assert len(re.findall(r"\tvpdpbusd\t", assembly)) == total["dot4_u7"] > 0
    multiplied = len(re.findall(r"\tvfn?m(?:add|sub)\w+ps\t", assembly))
    assert multiplied == total["fma"]


def parsed(body: str) -> ir.Kernel:
    lines = "\n".join(f"        {line}" for line in body.strip().split("\n"))
    head = "def k(x: f32[S, 64], i: i32[S], y: f32[S, 64], *, S: index):"
    return parse_kernel(f"{head}\n    for s in parallel(S):\n{lines}\n")


def test_what_does_not_change_in_a_loop_is_done_before_it() -> None:
    kernel = parsed(
        """
a = x[s, 0]
for k in range(0, 64, 1):
    y[s, k] = (a * a + x[s, k]) * (a * a)
"""
    )
    body = pieces(kernel)
    outside = {o.name: n for o, n in body.operations.items()}
    inside = {
        o.name: n for w in walk_pieces(body) if w is not body for o, n in w.operations.items()
    }
    assert outside == {"load": 1, "mul": 1}
    assert inside == {"load": 1, "add": 1, "mul": 1, "store": 1, "round": 1}


def test_a_sum_takes_its_latency_each_round() -> None:
    kernel = parsed(
        """
total = f32(0.0)
for k in range(0, 64, 1):
    total = total + x[s, k] * x[s, k]
y[s, 0] = total
"""
    )
    chains = [piece.chain for piece in walk_pieces(pieces(kernel))]
    assert chains == [0, 4]  # the addition, not the multiplication


def test_control_follows_what_is_loaded() -> None:
    kernel = parsed(
        """
n = cast(index, i[s])
for k in range(0, n, 1):
    y[s, k] = x[s, k]
"""
    )
    body = pieces(kernel)
    launched = Launched(kernel, body, {"S": 9}, {"i": lambda at: 3 + at[0]})
    assert counted(launched)["store"] == sum(3 + s for s in range(9))
    unknown = Launched(kernel, body, {"S": 9})
    assert counted(unknown)["store"] == 9  # once each, where nobody knows
