"""The reader against right files, against the reference library, and against hostile files."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.checkpoint.safetensors import close_files, open_file, open_sharded
from ondevice.errors import CheckpointError

RNG = np.random.default_rng(3)


def f32_file(n: int = 1) -> bytes:
    """A header for n f32 elements named x, as a JSON text."""
    return json.dumps({"x": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}).encode()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_rows_of_every_type_are_read_exactly(write):
    single = RNG.standard_normal((5, 3)).astype(np.float32)
    half = np.array([0, 1, -2, 65504, 6e-8, np.inf], np.float16)  # subnormals and infinity too
    brain = single.view(np.uint16)[:, 1::2].copy()  # the upper half of each float32
    tensors = open_file(write({"single": single, "half": half, "brain": brain}))
    np.testing.assert_array_equal(tensors["single"].read_rows(1, 4), single[1:4])
    np.testing.assert_array_equal(tensors["half"].read_rows(0, 6), half.astype(np.float32))
    truncated = (single.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(tensors["brain"].read_rows(0, 5), truncated)
    assert tensors["single"].read_bytes(4, 12) == single.tobytes()[4:12]
    close_files(tensors.values())


def test_one_buffer_serves_all_blocks(write):
    array = RNG.standard_normal((6, 4)).astype(np.float32)
    tensor = open_file(write({"x": array}))["x"]
    block = np.empty((2, 4), np.float32)
    for begin in (0, 2, 4):
        assert tensor.read_rows(begin, begin + 2, block) is block
        np.testing.assert_array_equal(block, array[begin : begin + 2])
    assert tensor.read_rows(3, 3).shape == (0, 4)
    with pytest.raises(IndexError):
        tensor.read_rows(5, 7)
    with pytest.raises(IndexError):
        tensor.read_bytes(0, 97)
    with pytest.raises(ValueError, match="contiguous"):
        tensor.read_rows(0, 3, block)
    close_files([tensor])


def test_what_the_reference_library_writes_is_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {f"t{i}": RNG.standard_normal((i + 1, 2)).astype(np.float32) for i in range(5)}
    safetensors.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    tensors = open_file(tmp_path / "x.safetensors")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read_rows(0, len(array)), array)
    close_files(tensors.values())


def entry(**changes: object) -> dict[str, object]:
    right = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {"x": right | changes}


HOSTILE = {
    "empty": (b"", "too short"),
    "seven bytes": (b"\1" * 7, "too short"),
    "header past the end": (struct.pack("<Q", 100) + b"{}", "announces a header of 100 bytes"),
    "huge header": (struct.pack("<Q", 2**63), "announces a header"),
    "not UTF-8": ((b"\xff\xfe{}", b""), "not valid JSON"),
    "not JSON": ((b"{'x': 1}", b""), "not valid JSON"),
    "no object": ((b"[]", b""), "must hold a JSON object"),
    "deep nesting": ((b'{"x":' + b"[" * 200_000, b""), "not valid JSON"),
    "huge number": ((b'{"x":' + b"9" * 10_000 + b"}", b""), "not valid JSON"),
    "no tensors": (({}, b""), "holds no tensor"),
    "duplicate name": ((f32_file()[:-1] + b"," + f32_file()[1:], b"\0" * 4), "'x' occurs twice"),
    "unknown dtype": ((entry(dtype="F8_E4M3"), b"\0" * 4), "elements of type 'F8_E4M3'"),
    "dtype no text": ((entry(dtype=["F32"]), b"\0" * 4), "elements of type"),
    "shape no list": ((entry(shape=1), b"\0" * 4), "malformed shape"),
    "negative shape": ((entry(shape=[-1, -1]), b"\0" * 4), "malformed shape"),
    "shape of bool": ((entry(shape=[True]), b"\0" * 4), "malformed shape"),
    "shape of floats": ((entry(shape=[1.0]), b"\0" * 4), "malformed shape"),
    "overflowing shape": ((entry(shape=[2**62, 2**62]), b"\0" * 4), "needs"),
    "three offsets": ((entry(data_offsets=[0, 4, 8]), b"\0" * 4), "data_offsets"),
    "reversed offsets": ((entry(data_offsets=[4, 0]), b"\0" * 4), "needs 4 bytes, not -4"),
    "bytes too few": ((entry(shape=[2]), b"\0" * 4), "needs 8 bytes, not 4"),
    "out of range": ((entry(), b""), "its tensors end at"),
    "offset far out": ((entry(data_offsets=[2**62, 2**62 + 4]), b"\0" * 4), "follows a gap"),
    "trailing data": ((entry(), b"\0" * 5), "its tensors end at"),
    "gap": ((entry(data_offsets=[4, 8]), b"\0" * 8), "follows a gap"),
    "overlap": (
        (
            {
                "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            },
            b"\0" * 8,
        ),
        "'y' overlaps another tensor",
    ),
    "extra key": ((entry(strides=[1]), b"\0" * 4), "exactly dtype, shape and data_offsets"),
    "missing key": (({"x": {"dtype": "F32"}}, b""), "exactly dtype, shape and data_offsets"),
    "entry no object": (({"x": 1}, b""), "exactly dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(write, case):
    content, message = HOSTILE[case]
    path = write(content)
    before = descriptors()
    with pytest.raises(CheckpointError, match=message) as refusal:
        open_file(path)
    assert str(path) in str(refusal.value)
    assert descriptors() == before, "nothing stays open"


def test_a_missing_file_is_an_error_not_a_traceback(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: cannot be opened"):
        open_file(tmp_path / "absent.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(write):
    path = write({"x": np.zeros((4, 4), np.float32)})
    tensor = open_file(path)["x"]
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(CheckpointError, match="became shorter"):
        tensor.read_rows(0, 4)
    close_files([tensor])


def test_integers_are_listed_but_are_no_weights(write):
    header = {"ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    tensor = open_file(write((header, b"\0" * 8)))["ids"]
    with pytest.raises(CheckpointError, match="'ids' is i64; weights must be"):
        tensor.read_rows(0, 1)
    close_files([tensor])


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_mutated_files_open_or_are_refused(tmp_path_factory, mutations):
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F16", "shape": [4], "data_offsets": [16, 24]},
    }
    text = json.dumps(header).encode()
    content = bytearray(struct.pack("<Q", len(text)) + text + bytes(24))
    for position, byte in mutations:
        content[position % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        tensors = open_file(path)
    except CheckpointError:
        return
    for tensor in tensors.values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.size_bytes <= len(content)
        assert len(tensor.read_bytes(0, tensor.size_bytes)) == tensor.size_bytes
    close_files(tensors.values())


# --- shards -----------------------------------------------------------------------------------


@pytest.fixture
def sharded(write) -> Path:
    write({"a": np.ones((2, 2), np.float32)}, name="one.safetensors")
    write({"b": np.zeros(3, np.float32)}, name="two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    return write(json.dumps(index).encode(), name="model.safetensors.index.json")


def test_shards_are_one_directory(sharded):
    tensors = open_sharded(sharded)
    assert {n: t.shape for n, t in tensors.items()} == {"a": (2, 2), "b": (3,)}
    close_files(tensors.values())


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, r"names three\.safetensors, which is"),
        ({"a": "one.safetensors", "b2": "two.safetensors"}, "holds 'b', against the index"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "lacks 'b', against the index"),
        ({"a": "../one.safetensors"}, "no plain file name"),
        ({"a": "/etc/passwd"}, "no plain file name"),
        ({"a": ".."}, "no plain file name"),
        ({"a": 1}, "no plain file name"),
        ({}, 'has no "weight_map"'),
        ([], 'has no "weight_map"'),
    ],
)
def test_wrong_indices_are_refused(sharded, weight_map, message):
    sharded.write_text(json.dumps({"weight_map": weight_map}))
    before = descriptors()
    with pytest.raises(CheckpointError, match=message):
        open_sharded(sharded)
    assert descriptors() == before, "nothing stays open"
