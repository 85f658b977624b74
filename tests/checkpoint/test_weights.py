"""The name map is checked both ways: nothing missing, nothing unused."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.checkpoint.safetensors import close_files, open_file
from ondevice.checkpoint.weights import WeightMap, WeightRow, bind
from ondevice.errors import CheckpointError

MAP = WeightMap(
    (
        WeightRow("embed", "model.embed", (4, 2)),
        WeightRow("layers.{layer}.a", "model.{layer}.a", (2,)),
        WeightRow("layers.{layer}.b", "model.{layer}.b", (2,)),
        WeightRow("norm", "model.norm", (2,)),
    ),
    layers=2,
    ignored=("model.{layer}.inv_freq",),
    copies=(("head", "model.embed"),),
)


@pytest.fixture
def bound(write):
    """bound(changes) binds MAP to a file with these tensors changed (None: left out)."""
    opened = []

    def bind_file(**changes: np.ndarray | None):
        arrays = {"model.embed": np.arange(8, dtype=np.float32).reshape(4, 2)}
        arrays |= {f"model.{i}.{n}": np.zeros(2, np.float32) for i in (0, 1) for n in "ab"}
        arrays |= {"model.norm": np.ones(2, np.float32)} | changes
        path = write({name: array for name, array in arrays.items() if array is not None})
        tensors = open_file(path)
        opened.extend(tensors.values())
        return bind(MAP, tensors)

    yield bind_file
    close_files(opened)


def test_all_weights_are_found_in_the_order_of_the_model(bound):
    tensors = bound()
    layers = [f"layers.{i}.{n}" for i in (0, 1) for n in "ab"]
    assert list(tensors) == ["embed", *layers, "norm"] == list(MAP.shapes())
    assert tensors["layers.1.b"].name == "model.1.b"


def test_named_buffers_and_equal_copies_are_dropped(bound):
    head = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert "head" not in bound(**{"head": head, "model.1.inv_freq": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.1.a": None}, r"no tensor 'model\.1\.a' \[2\]"),
        ({"model.norm": np.ones(3, np.float32)}, r"'model\.norm' has shape \[3\], but .* \[2\]"),
        ({"model.2.a": np.ones(2, np.float32)}, r"nothing uses the tensor 'model\.2\.a' \[2\]"),
        ({"model.2.inv_freq": np.ones(2, np.float32)}, "nothing uses the tensor"),
        ({"head": np.zeros((4, 2), np.float32)}, "ties 'head' to 'model.embed', but"),
        ({"head": np.zeros((4, 2), np.float16)}, "ties 'head' to 'model.embed', but"),
    ],
)
def test_what_does_not_fit_is_named(bound, changes, message):
    with pytest.raises(CheckpointError, match=message):
        bound(**changes)
