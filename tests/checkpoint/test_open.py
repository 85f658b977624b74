"""Opening directories: what is there, what is missing, and what the error says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ondevice.checkpoint.open import open_checkpoint
from ondevice.errors import CheckpointError

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}).encode()


@pytest.fixture
def checkpoint(write):
    write(CONFIG, name="config.json")
    return write({"x": np.zeros(2, np.float32)}).parent


def test_a_directory_opens(checkpoint, write):
    with open_checkpoint(checkpoint) as opened:
        assert opened.architecture == "LlamaForCausalLM"
        assert opened.config["hidden_size"] == 64
        assert opened.generation_config == {}
        assert opened.tensors["x"].shape == (2,)
        assert opened.tokenizer == checkpoint / "tokenizer.json"
    with pytest.raises(OSError):
        opened.tensors["x"].read_bytes(0, 4)
    write(b'{"eos_token_id": [1, 2]}', name="generation_config.json")
    with open_checkpoint(str(checkpoint)) as opened:
        assert opened.generation_config["eos_token_id"] == [1, 2]


def test_a_sharded_directory_opens(checkpoint, write):
    (checkpoint / "model.safetensors").rename(checkpoint / "one.safetensors")
    write(b'{"weight_map": {"x": "one.safetensors"}}', name="model.safetensors.index.json")
    with open_checkpoint(checkpoint) as opened:
        assert list(opened.tensors) == ["x"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", r"config\.json: the file is not valid JSON"),
        (b"{}", '"architectures" must name one architecture'),
        (b'{"architectures": ["A", "B"]}', '"architectures" must name one architecture'),
        (b'{"architectures": "A"}', '"architectures" must name one architecture'),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    ],
)
def test_wrong_configs_are_refused(checkpoint, write, config, message):
    write(config, name="config.json")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(checkpoint)


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found pytorch_model\.bin.*save the model as safet"):
        open_checkpoint(tmp_path)
