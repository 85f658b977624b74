"""Every kernel of the library: compiled as written, meaning its op, whatever the tile and batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from ondevice import targets
from ondevice.graph.graph import Attrs
from ondevice.kernels import LIBRARY
from ondevice.targets.detect import host_features

from .bound import Bound
from .cases import CASES, Array, case, pool_values

VARIANTS = {v.name: frozenset(v.features) for v in targets.load("host").cpu.variants}

# Largest difference to the op's reference, relative to the largest element of the result. Sums and
# exponentials round differently; rows that are not here do the reference's arithmetic exactly.
TOLERANCE = {
    "attention": 1e-6,
    "attention_tiles": 1e-6,
    "attention_parts": 1e-6,
    "attention_near": 1e-6,
    "attention_join": 1e-6,
    "attention_joined_tiles": 1e-6,
    "elementwise_silu": 3e-7,
    "embed_int": 3e-7,
    "gemv": 1e-6,
    "gemm": 1e-6,
    "gemv_int": 1e-6,
    "gemm_int": 1e-6,
    "gemm_int_2": 1e-6,
    "gemm_int_4": 1e-6,
    "gemm_int_8": 1e-6,
    "gemm_int_signed": 1e-6,
    "gemm_int_tile": 1e-6,
    "gemv_dequant": 1e-6,
    "gemm_dequant": 1e-6,
    "quantize": 2e-7,
    "quantize_row": 2e-7,
    "rms_scale": 3e-7,
    "rmsnorm": 3e-7,
    "kv_write-fused": 5e-4,  # what is rounded to the cache's float16 was rounded before
    "pairwise_rope": 2e-7,
}
FEW = ("gemv_int", "gemm_int_2", "gemm_int_4", "gemm_int_8")
TOLERANCE |= {f"{row}_{cpu}": TOLERANCE[row] for row in FEW for cpu in ("neon", "i8mm")}
TILES: dict[str, tuple[dict[str, int], ...]] = {
    "tile": (
        {"strip": 1, "blocks": 1},
        {"strip": 3, "blocks": 2},
    ),
    "strip": ({"strip": 1, "tiles": 1}, {"strip": 3, "tiles": 2}),
    "tokens": ({"tokens": 1, "blocks": 1}, {"tokens": 3, "blocks": 4}, {"tokens": 6, "blocks": 2}),
    "width": ({"width": 16}, {"width": 64}),
}


def applicable() -> Iterator[tuple[str, str]]:
    """(library row, case) wherever the row can compute the case."""
    for name in CASES:
        example = case(name, 1)
        rows = [row.name for row in LIBRARY.candidates(example.node, example.types)]
        yield from ((row, name) for row in rows)
        yield from ((r.name, name) for r in LIBRARY.kernels.values() if r.instead_of in rows)


def row_counts(name: str) -> tuple[int, ...]:
    """Around the tiles of the library; wide cases are slow as plain Python."""
    if "172" in name:
        return (1, 7)
    return (1, 2, 5, 6, 7, 13) if name.startswith("matmul-f") else (2, 7)


PAIRS = list(applicable())
AWKWARD = [(*pair, rows) for pair in PAIRS for rows in row_counts(pair[1])]
# Rows that some variant of the host's target takes; tests/targets has the others under qemu.
NATIVE = {row.name for row in LIBRARY.kernels.values() for f in VARIANTS.values() if row.needs <= f}


def bound(row: str, name: str, rows: int, tile: Attrs | None = None) -> Bound:
    definition = LIBRARY.kernels[row]
    return Bound(definition, case(name, rows), definition.tile if tile is None else tile)


@cache
def plain(row: str, name: str, rows: int) -> Array:
    return bound(row, name, rows).plain()


def assert_same_bits(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes(), np.argwhere(actual != expected)[:4].tolist()


def skip_without(row: str, features: frozenset[str]) -> None:
    if not LIBRARY.kernels[row].needs <= features:
        pytest.skip("this CPU takes another kernel")


@pytest.fixture(params=VARIANTS)
def features(request: pytest.FixtureRequest) -> frozenset[str]:
    wanted = VARIANTS[request.param]
    if not wanted <= host_features():
        pytest.skip(f"this machine does not run {request.param}")
    return wanted


@pytest.fixture
def best_features() -> frozenset[str]:
    runnable = [f for f in VARIANTS.values() if f <= host_features()]
    if not runnable:
        pytest.skip("this machine runs no variant of its target")
    return runnable[0]


def test_every_kernel_has_a_case() -> None:
    assert set(LIBRARY.kernels) == {row for row, _ in PAIRS}


@pytest.mark.parametrize(("row", "name", "rows"), [a for a in AWKWARD if a[0] in NATIVE])
def test_compiled_equals_plain_python(
    row: str, name: str, rows: int, features: frozenset[str]
) -> None:
    skip_without(row, features)
    assert_same_bits(bound(row, name, rows).compiled(features), plain(row, name, rows))


@pytest.mark.parametrize(("row", "name", "rows"), AWKWARD)
def test_kernel_means_its_op(row: str, name: str, rows: int) -> None:
    actual, expected = plain(row, name, rows), case(name, rows).reference()
    assert actual.dtype == expected.dtype
    if actual.dtype == np.int8:
        actual, expected = pool_values(actual), pool_values(expected)
    row = f"{row}-fused" if f"{row}-fused" in TOLERANCE and name.endswith("-fused") else row
    tolerance = TOLERANCE.get(row, 0.0) * float(np.nanmax(np.abs(expected)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("row", "name"), [p for p in PAIRS if p[0] != "kv_write"])
def test_rows_do_not_depend_on_their_company(
    row: str, name: str, best_features: frozenset[str]
) -> None:
    skip_without(row, best_features)
    together = bound(row, name, 7)
    alone = [together.of_rows(i, i + 1).compiled(best_features) for i in range(together.case.rows)]
    assert_same_bits(np.concatenate(alone), together.compiled(best_features))


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("kv_write")])
def test_tokens_are_written_alone_as_together(name: str, best_features: frozenset[str]) -> None:
    together = bound("kv_write", name, 7)
    kv = together.case.values["kv"]
    for i in range(7):
        kv = together.of_rows(i, i + 1).having(kv=kv).compiled(best_features)
    assert_same_bits(kv, together.compiled(best_features))


@pytest.mark.parametrize(
    ("row", "name"), [p for p in PAIRS if LIBRARY.kernels[p[0]].tile and p[0] in NATIVE]
)
def test_bits_do_not_depend_on_the_tile(row: str, name: str, best_features: frozenset[str]) -> None:
    skip_without(row, best_features)
    definition, example = LIBRARY.kernels[row], case(name, 7)
    default = dict(definition.tile)
    if definition.fit is None:
        tiles = [tuple((default | tile).items()) for tile in TILES[next(iter(default))]]
    else:
        fit = definition.fit
        tiles = [
            fit(example.node, example.types, room, 32, features)
            for room in (8, 16, 32)
            for features in (best_features, frozenset[str]())
        ]
    expected = plain(row, name, 7)
    for tile in tiles:
        assert_same_bits(bound(row, name, 7, tile).compiled(best_features), expected)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("matmul-int") and "-int" in n])
@pytest.mark.parametrize("tokens", [2, 16])
def test_bits_do_not_depend_on_the_rows_in_registers(
    name: str, tokens: int, best_features: frozenset[str]
) -> None:
    if ("gemm_int", name) not in PAIRS:
        pytest.skip("float activations")
    sizes = dict(LIBRARY.kernels["gemm_int"].tile) | {"tokens": tokens}
    got = bound("gemm_int", name, 7, tuple(sizes.items())).compiled(best_features)
    assert_same_bits(got, plain("gemm_int", name, 7))


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("matmul", "attention-"))])
def test_all_kernels_of_an_op_give_the_same_bits(name: str) -> None:
    first, *others = [row for row, of in PAIRS if of == name]
    assert others, "one kernel for few rows, one for many"
    for other in others:
        assert_same_bits(plain(other, name, 7), plain(first, name, 7))


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("attention_parts")])
def test_attention_in_parts_gives_the_same_bits(name: str, best_features: frozenset[str]) -> None:
    in_parts = bound("attention_parts", name, 7)
    parts = in_parts.compiled(best_features)
    join = bound("attention_join", name.replace("_parts", "_joined"), 7)
    joined = join.having(parts=parts, **in_parts.case.values).compiled(best_features)
    whole = bound("attention", name.replace("_parts", ""), 7).having(**in_parts.case.values)
    assert_same_bits(joined, whole.compiled(best_features))
