"""The report names every tensor, and its errors are those of unpacking what was packed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ondevice.errors import OndeviceError
from ondevice.kernels.packers import Packers
from ondevice.quant.layout import Array, squared_error, unpack
from ondevice.quant.policy import plan
from ondevice.quant.report import QuantReport
from ondevice.quant.scheme import SCHEMES, Scheme
from ondevice.quant.stream import BLOCK_BYTES, stream
from ondevice.recipe import QuantRecipe


class Rows:
    """A tensor in memory."""

    def __init__(self, values: Array) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read_rows(self, begin: int, end: int, out: Array | None = None) -> Array:
        return self.values[begin:end]


def normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def streamed(tensors: dict[str, Array], recipe: QuantRecipe) -> tuple[QuantReport, bytes]:
    report = QuantReport()
    entries = plan({name: t.shape for name, t in tensors.items()}, recipe).entries
    rows = {name: Rows(values) for name, values in tensors.items()}
    return report, b"".join(stream(entries, rows, Packers(), report))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("shape", [(32, 64), (5, 172), (33, 30), (1, 1)])
def test_the_compiled_error_is_that_of_numpy(scheme: Scheme, shape: tuple[int, int]) -> None:
    values = normal(*shape)
    packers = Packers()
    packed = packers.pack(values, scheme)
    got = packers.squared_error(values, packed, scheme)
    assert got == pytest.approx(squared_error(values, packed, scheme), rel=1e-4, abs=1e-12)


def test_zeros_have_no_error() -> None:
    report, _ = streamed({"w": np.zeros((16, 32), np.float32)}, QuantRecipe("int4_g32"))
    assert [tensor.error for tensor in report.tensors] == [0.0]


def test_blocks_of_a_tensor_add_up() -> None:
    values = normal(BLOCK_BYTES // (4 * 64) + 40, 64)
    report, data = streamed({"w": values}, QuantRecipe("int8_g256"))
    lost = unpack(data, SCHEMES["int8_g256"], *values.shape) - values
    expected = np.sqrt(np.square(lost, dtype=np.float64).sum() / np.square(values).sum())
    assert report.tensors[0].error == pytest.approx(expected, rel=1e-4)


def test_threads_and_where_the_caller_begins_do_not_matter() -> None:
    """More blocks than are read ahead, of tensors that are packed and that are not."""
    tensors = {
        "embed.weight": normal(5 * BLOCK_BYTES // (4 * 64) + 40, 64),
        "layers.0.norm.weight": normal(64),
        "layers.0.mlp.up.weight": normal(3 * BLOCK_BYTES // (4 * 64) + 8, 64),
    }
    entries = plan({name: t.shape for name, t in tensors.items()}, QuantRecipe("int4_g32")).entries
    rows = {name: Rows(values) for name, values in tensors.items()}
    report = QuantReport()
    whole = b"".join(stream(entries, rows, Packers(), report, threads=1))
    for entry in entries:
        part = whole[entry.offset : entry.offset + entry.size_bytes]
        if entry.scheme:
            alone = Packers().pack(tensors[entry.name], SCHEMES[entry.scheme])
        else:
            alone = tensors[entry.name].tobytes()
        assert part == alone
    for threads, begin in ((3, 0), (2, entries[0].size_bytes - 5), (1, entries[2].offset + 7)):
        again = QuantReport()
        data = b"".join(stream(entries, rows, Packers(), again, begin, threads))
        assert data == whole[begin:]
        assert again.tsv() == report.tsv()


def test_an_error_of_a_tensor_ends_the_stream() -> None:
    class Broken(Rows):
        def read_rows(self, begin: int, end: int, out: Array | None = None) -> Array:
            raise OndeviceError("the file ended")

    shapes = {"a": (16, 64), "b": (16, 64)}
    entries = plan(shapes, QuantRecipe("int4_g32")).entries
    rows = {"a": Rows(normal(16, 64)), "b": Broken(normal(16, 64))}
    pieces = stream(entries, rows, Packers(), QuantReport())
    assert len(next(pieces)) == entries[0].size_bytes
    with pytest.raises(OndeviceError, match="the file ended"):
        b"".join(pieces)


@pytest.fixture(scope="module")
def report() -> QuantReport:
    tensors = {
        "embed.weight": normal(48, 64),
        "layers.0.norm.weight": normal(64),
        "layers.0.mlp.up.weight": normal(32, 64),
        "layers.1.norm.weight": normal(64),
        "layers.1.mlp.up.weight": normal(32, 64),
        "head.weight": normal(48, 64),
    }
    rules = (("layers.1.mlp.*", "int8_g256"), ("head.weight", "f32"))
    return streamed(tensors, QuantRecipe("int4_g32_sym", rules=rules))[0]


def test_every_tensor_is_named_with_its_scheme(report: QuantReport) -> None:
    table = json.loads(report.json())
    assert [(row["name"], row["scheme"]) for row in table["tensors"]] == [
        ("embed.weight", "int8_g256"),
        ("layers.0.norm.weight", "plain"),
        ("layers.0.mlp.up.weight", "int4_g32_sym"),
        ("layers.1.norm.weight", "plain"),
        ("layers.1.mlp.up.weight", "int8_g256"),
        ("head.weight", "f32"),
    ]
    errors = [row["error"] for row in table["tensors"]]
    assert errors[1] == errors[3] == errors[5] == 0.0
    assert 0 < errors[0] < 0.01 < errors[2] < 0.2
    assert table["tensors"][5]["bits_per_weight"] == 32.0
    assert table["total"]["size_bytes"] == sum(row["size_bytes"] for row in table["tensors"])


def test_the_dump_has_a_line_for_each(report: QuantReport) -> None:
    lines = [line.split("\t") for line in report.tsv().splitlines()]
    assert lines[0] == ["tensor", "shape", "scheme", "bytes", "bits_per_weight", "error"]
    assert lines[3][:3] == ["layers.0.mlp.up.weight", "32x64", "int4_g32_sym"]
    assert len(lines) == 7


def test_the_summary_joins_layers_of_one_scheme(report: QuantReport) -> None:
    rows = [line.split() for line in report.summary().splitlines()]
    assert [row[:3] for row in rows[2:5]] == [
        ["layers.*.norm.weight", "2", "plain"],
        ["layers.*.mlp.up.weight", "1", "int4_g32_sym"],
        ["layers.*.mlp.up.weight", "1", "int8_g256"],
    ]
    assert rows[-1][:2] == ["total", "6"]


def test_a_report_that_cannot_be_written_is_an_error(report: QuantReport, tmp_path: Path) -> None:
    with pytest.raises(OndeviceError, match="cannot write the report"):
        report.write(tmp_path / "missing" / "report.json")
