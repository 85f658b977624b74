"""Is the tile that the compiler constructs as good as the best there is?

    python scripts/sweep_tiles.py                        three shapes, this machine's best variant
    python scripts/sweep_tiles.py --shape 512x5632x2048 --variant avx2 --json sweep.json
    python scripts/sweep_tiles.py --construct llama-7b   how long all tiles of a model take

A shape is rows x outputs x columns of a product with `int4_g32` weights. Every tile in a grid is
compiled and timed on one thread, all in turn, several rounds; a figure is the median of rounds. The
tile that `passes/tile.py` constructs is among them. The compiler itself
searches nothing: this is how the model by which it constructs tiles is judged.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice import targets
from ondevice.checkpoint.open import architecture_of
from ondevice.codegen.emit import emit_object, host_triple
from ondevice.codegen.llvm import print_function, print_module
from ondevice.codegen.loaded import load_object
from ondevice.gate.predict import read_config
from ondevice.graph.graph import Attrs, Choice, Node
from ondevice.graph.text import parse_graph
from ondevice.kernels import LIBRARY
from ondevice.kernels.packers import Packers
from ondevice.lang.evaluate import task_count
from ondevice.lang.library import Types, instantiate
from ondevice.models import family_of, trace
from ondevice.passes import PASSES
from ondevice.passes.context import Context
from ondevice.passes.select import select
from ondevice.passes.tile import tile
from ondevice.quant.activations import quantize_activations
from ondevice.quant.policy import plan
from ondevice.quant.scheme import SCHEMES
from ondevice.recipe import bundled_config, load_recipe
from ondevice.targets.detect import host_features
from ondevice.targets.target import CpuVariant

SHAPES = ("1x5632x2048", "8x1536x576", "512x5632x2048")
SCHEME = "int4_g32"
GRIDS = {
    "strip": (1, 2, 4, 8),
    "tiles": (2, 4, 8, 16, 32),
    "tokens": (1, 2, 4, 8, 16),
    "blocks": (1, 2, 4, 8),
}
ENOUGH = 8  # tasks that a launch must leave for the cores, as for the compiler
GRAPH = """\
graph "sweep"
input x: f32[S, {columns}]:a8_g64
weight w: f32[{outputs}, {columns}]:{scheme}
y: f32[S, {outputs}] = matmul(x, w)
return (y)
"""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Product:
    """A matrix product, and the kernel and tile that the compiler takes for it."""

    rows: int
    outputs: int
    columns: int
    variant: CpuVariant
    node: Node
    types: Types
    kernel: str
    chosen: Attrs

    def tiles(self) -> Iterator[Attrs]:
        """Every tile of the grid that leaves enough tasks, and the chosen one."""
        names = [name for name, _ in self.chosen if name in GRIDS]
        fixed = {name: value for name, value in self.chosen if name not in GRIDS}
        most = -(-self.outputs // 16) // ENOUGH
        for sizes in itertools.product(*(GRIDS[name] for name in names)):
            new = dict(zip(names, sizes, strict=True))
            cells = new.get("strip", 1) * new.get("blocks", 1)
            if new.get("tokens", 1) <= max(self.rows, 1) and cells <= max(1, most):
                schedule = tuple((n, new.get(n, fixed.get(n, v))) for n, v in self.chosen)
                if schedule != self.chosen and self._fits(new):
                    yield schedule
        yield self.chosen

    def _fits(self, sizes: dict[str, int]) -> bool:
        """A matrix unit takes 16 rows, no fewer; more results than twice the registers are slow."""
        if self.binding().get("matrix"):
            return sizes.get("tokens", 16) == 16
        return sizes.get("tokens", 1) * sizes.get("blocks", 1) <= 32

    def binding(self) -> dict[str, Any]:
        found = LIBRARY.kernels[self.kernel].bind(self.node, self.types)
        assert found is not None
        return dict(found.constants)


def product(shape: str, variant: CpuVariant) -> Product:
    """What the compiler does with a shape."""
    rows, outputs, columns = map(int, shape.split("x"))
    text = GRAPH.format(outputs=outputs, columns=columns, scheme=SCHEME)
    context = Context(targets.load("host"), LIBRARY)
    graph = tile(select(parse_graph(text), context), context)
    node = graph.nodes[0]

    def suits(choice: Choice) -> bool:
        return choice.min_rows <= rows <= choice.max_rows

    kernel, chosen = max(filter(suits, node.choices), key=lambda c: c.min_rows).on(variant.name)
    return Product(rows, outputs, columns, variant, node, graph.types(), kernel, chosen)


def aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64 bytes, as everything does where kernels run."""
    room = np.zeros(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Candidate:
    """A product compiled with one tile, and memory for it."""

    def __init__(self, of: Product, schedule: Attrs, weights: bytes) -> None:
        row = LIBRARY.kernels[of.kernel]
        binding = row.bind(of.node, of.types)
        assert binding is not None
        kernel = instantiate(LIBRARY, row, of.node, of.types, schedule).kernel
        features = frozenset(of.variant.features)
        text = print_module([print_function(kernel, "kernel", features)], host_triple())
        self.loaded = load_object(emit_object(text, host_triple()))
        shapes = [tuple(d.evaluate({"S": of.rows}) for d in v.shape) for v in binding.views]
        x = np.full(shapes[0], 0x3C, np.uint8)  # as int8 60, as a float32 scale 0.0115
        w = np.frombuffer(weights, np.uint8).reshape(shapes[1])
        self.arrays = [aligned(a) for a in (x, w, np.zeros(shapes[2], np.float32))]
        self.scratch = aligned(np.zeros(max(64, kernel.scratch_bytes), np.uint8))
        sizes: dict[str, int] = {}
        for parameter, shape in zip(row.function.source.buffers, shapes, strict=True):
            sizes.update(zip(map(str, parameter.dims), shape, strict=True))
        self.scalars = [sizes[name] for name in kernel.scalars]
        self.tasks = task_count(kernel, sizes)

    def seconds(self) -> float:
        """Of the product, computed once."""
        function = self.loaded.function("kernel")
        pointers = (ctypes.c_void_p * 3)(*(a.ctypes.data for a in self.arrays))
        numbers = (ctypes.c_int32 * max(1, len(self.scalars)))(*self.scalars)
        start = perf_counter()
        function(pointers, numbers, 0, self.tasks, self.scratch.ctypes.data)
        return perf_counter() - start


def sweep(of: Product, rounds: int) -> list[tuple[float, Attrs]]:
    """(median seconds, tile), the fastest first."""
    values = np.random.default_rng(1).standard_normal((of.outputs, of.columns), np.float32)
    weights = Packers().pack(values, SCHEMES[SCHEME])
    schedules = list(of.tiles())
    candidates = [Candidate(of, schedule, weights) for schedule in schedules]
    seconds: list[list[float]] = [[] for _ in schedules]
    for turn in range(rounds):
        for i in range(len(schedules)):
            at = (i + turn) % len(schedules)
            seconds[at].append(min(candidates[at].seconds() for _ in range(3)))
    medians = [statistics.median(s) for s in seconds]
    return sorted(zip(medians, schedules, strict=True), key=lambda pair: pair[0])


def best_variant(name: str) -> CpuVariant:
    """The variant called `name`, or the first that this machine runs."""
    present = host_features()
    for variant in targets.load("host").cpu.variants:
        if name in ("", variant.name) and present.issuperset(variant.features):
            if "amx-tile" in variant.features:  # ask Linux for the tile registers
                ctypes.CDLL(None).syscall(158, 0x1023, 18)
            return variant
    raise SystemExit(f"this machine runs no variant {name}")


def construct(name: str, rounds: int) -> str:
    """How long it takes to construct all tiles of a bundled recipe's model."""
    recipe, context = load_recipe(name), Context(targets.load("host"), LIBRARY)
    config = read_config(bundled_config(name))
    family = family_of(architecture_of(Path("config.json"), config))
    parsed = family.parse_config(config)
    types = plan(family.weights(parsed).shapes(), recipe.quant).types
    graph = quantize_activations(trace(family, parsed, weight_types=types))
    for row in itertools.takewhile(lambda row: row.rewrite is not tile, PASSES):
        graph = row.rewrite(graph, context)
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        tile(graph, context)
        seconds.append(perf_counter() - start)
    choices = sum(len(node.choices) for node in graph.nodes)
    milliseconds = statistics.median(seconds) * 1e3
    return f"{name}: {choices} tiles of {len(graph.nodes)} nodes in {milliseconds:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", metavar="SxNxK")
    parser.add_argument("--variant", default="", help="the best that this machine runs by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--construct", metavar="RECIPE")
    arguments = parser.parse_args()
    if arguments.construct:
        print(construct(arguments.construct, arguments.rounds))
        return
    variant = best_variant(arguments.variant)
    table = []
    print("| shape | kernel | tile | us | best tile | us | chosen / best | tiles |")
    print("|---|---|---|---:|---|---:|---:|---:|")
    for shape in arguments.shape or SHAPES:
        of = product(shape, variant)
        found = sweep(of, arguments.rounds)
        chosen = next(seconds for seconds, schedule in found if schedule == of.chosen)
        best, schedule = found[0]
        tiles = [" ".join(f"{n}={v}" for n, v in t if n in GRIDS) for t in (of.chosen, schedule)]
        cells = (
            *(shape, f"{of.kernel} {variant.name}", tiles[0], f"{chosen * 1e6:.0f}", tiles[1]),
            *(f"{best * 1e6:.0f}", f"{chosen / best:.2f}", str(len(found))),
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        rows = [{"tile": dict(t), "us": s * 1e6} for s, t in found]
        table.append(
            {"shape": shape, "kernel": of.kernel, "chosen": dict(of.chosen), "tiles": rows}
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
