"""READERS: what is read, and which of its files are damaged."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from fuzzing.damage import damage_bytes, damage_json, damage_safetensors
from ondevice.build import build
from ondevice.bundle.program_text import parse_program
from ondevice.bundle.verify import verify_bundle
from ondevice.checkpoint.safetensors import close_files, open_file, open_sharded, parse_json
from ondevice.debug import Dump
from ondevice.dtypes import bf16, f16, f32
from ondevice.errors import RecipeError
from ondevice.graph.text import parse_graph
from ondevice.lang.text import parse_kernel
from ondevice.recipe import edit, load_recipe
from ondevice.runtime.engine import Engine
from ondevice.tokenizer import compile_tokenizer
from ondevice.tokenizer.template import compile_template

STORIES = Path(__file__).resolve().parents[2] / "recipes" / "stories260K"


def safetensors_file(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file of these tensors, (type, shape), their bytes counting up."""
    widths = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = widths[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(i % 61 for i in range(end))


CONFIG = """{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8,
  "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 512, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 128, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": [2, 3], "attention_bias": false,
  "rope_scaling": {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64
  }
}"""
GENERATION_CONFIG = """{
  "eos_token_id": [2, 5], "bos_token_id": 1, "temperature": 0.6, "top_p": 0.9, "top_k": 50,
  "do_sample": true
}"""
RECIPE = """name = "tiny"
model = "checkpoint"
target = "android-arm64"
context_tokens = 64
prefill_chunk_tokens = 8

[quant]
default = "int4_g32"
embedding = "int8_g256"
activations = "int8"
rules = { "layers.*.mlp.down.weight" = "f16", "layers.0.*" = "int8_g256" }

[kv]
dtype = "auto"

[passes]
disable = ["fuse"]
"""


def tiny_tensors() -> dict[str, tuple[str, list[int]]]:
    """The weights that CONFIG calls for."""
    tensors = {"model.embed_tokens.weight": ("BF16", [512, 32]), "model.norm.weight": ("F32", [32])}
    sizes = {"self_attn.q_proj": [32, 32], "self_attn.k_proj": [16, 32]}
    sizes |= {"self_attn.v_proj": [16, 32], "self_attn.o_proj": [32, 32]}
    sizes |= {"mlp.gate_proj": [64, 32], "mlp.up_proj": [64, 32], "mlp.down_proj": [32, 64]}
    sizes |= {"input_layernorm": [32], "post_attention_layernorm": [32]}
    for layer in range(2):
        for name, shape in sizes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = ("F16", shape)
    return tensors


Damage = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """Files that `prepare` writes into a folder, one of which is damaged before each `read`."""

    name: str
    prepare: Callable[[Path], None]
    files: dict[str, Damage]  # of the folder; may hold globs
    read: Callable[[Path], None]
    cost: int = 1  # how much dearer an input is than one of the cheapest


def prepare_safetensors(folder: Path) -> None:
    kinds = {
        "a": ("F32", [3, 4]),
        "b": ("F16", [4, 2, 2]),
        "c": ("BF16", [5, 3]),
        "d": ("I64", [2]),
    }
    (folder / "x.safetensors").write_bytes(safetensors_file(kinds | {"e": ("BOOL", [])}))


def read_safetensors(folder: Path) -> None:
    read_tensors(open_file(folder / "x.safetensors"))


def prepare_shards(folder: Path) -> None:
    places = {}
    for shard, tensors in {"1.safetensors": "ab", "2.safetensors": "cd"}.items():
        data = safetensors_file({name: ("F32", [2, 3]) for name in tensors})
        (folder / shard).write_bytes(data)
        places |= dict.fromkeys(tensors, shard)
    (folder / "index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def read_shards(folder: Path) -> None:
    read_tensors(open_sharded(folder / "index.json"))


def read_tensors(tensors: dict[str, Any]) -> None:
    """Every byte of each, and rows as floats where it has such."""
    try:
        for tensor in tensors.values():
            tensor.read_bytes(0, tensor.size_bytes)
            if tensor.dtype in (f32, f16, bf16) and tensor.shape:
                tensor.read_rows(0, tensor.shape[0])
    finally:
        close_files(tensors.values())


def prepare_checkpoint(folder: Path) -> None:
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(CONFIG)
    (checkpoint / "generation_config.json").write_text(GENERATION_CONFIG)
    (checkpoint / "model.safetensors").write_bytes(safetensors_file(tiny_tensors()))
    shutil.copy(STORIES / "tokenizer.json", checkpoint)
    (folder / "tiny.toml").write_text(RECIPE)


def read_checkpoint(folder: Path) -> None:
    """Up to a checked graph; nothing is compiled."""
    recipe = load_recipe(str(folder / "tiny.toml"))
    build(recipe, folder / "out", Dump(folder / "dump"), stop_after="canonicalize")


def read_whole_build(folder: Path) -> None:
    try:
        build(load_recipe(str(folder / "tiny.toml")), folder / "out")
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def prepare_settings(folder: Path) -> None:
    lines = ("quant.default=f32", "quant.rules=layers.*=f16,head.*=f32", "kv.dtype=f16", "name=x")
    (folder / "settings").write_text("\n".join((*lines, "context_tokens=12", "passes.disable=a,b")))


def read_settings(folder: Path) -> None:
    """Each line as a setting and as the name of a model, which it never is."""
    recipe = load_recipe("stories260k")
    for line in (folder / "settings").read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(RecipeError):
            load_recipe(line)
        recipe = edit(recipe, line)


def prepare_tokenizer(folder: Path) -> None:
    shutil.copy(STORIES / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(TOKENIZER_CONFIG)


def prepare_byte_tokenizer(folder: Path) -> None:
    """With the kinds of components that the tokenizer of stories260K lacks."""
    names = [*sorted(ByteLevel.alphabet()), "th", "the", "er"]
    model = {"vocab": {name: i for i, name in enumerate(names)}, "type": "BPE"}
    model["merges"] = [["t", "h"], ["th", "e"], ["e", "r"]]
    file = {**json.loads(COMPONENTS), "model": model, "decoder": json.loads(BYTE_LEVEL)}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "tokenizer_config.json").write_text(TOKENIZER_CONFIG)


def read_tokenizer(folder: Path) -> None:
    compile_tokenizer(folder / "tokenizer.json", folder / "tokenizer_config.json", vocab_size=520)


BYTE_LEVEL = """{
  "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
}"""
COMPONENTS = """{
  "version": "1.0",
  "added_tokens": [{
    "id": 260, "content": "<s>", "special": true,
    "single_word": false, "lstrip": true, "rstrip": false, "normalized": false
  }],
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {
      "type": "Split", "behavior": "Isolated", "invert": false,
      "pattern": {"Regex": "[0-9]{1,3}| ?[a-z]+|\\\\s+(?!\\\\S)|[^a-c\\\\s]|\\\\s+"}
    },
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
  ]},
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [260], "tokens": ["<s>"]}}
  }
}"""
TOKENIZER_CONFIG = """{
  "bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<unk>"],
  "added_tokens_decoder": {"1": {"content": "<s>", "special": true}}
}"""
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('late') }}{% endif %}{{ '<s>' + m['role'] + '\\n' + m['content'] | trim }}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def prepare_template(folder: Path) -> None:
    config = {**json.loads(TOKENIZER_CONFIG), "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def read_template(folder: Path) -> None:
    """From the configuration, then from the file beside it."""
    config = folder / "tokenizer_config.json"
    compile_template(parse_json(config, config.read_bytes()), folder / "elsewhere")
    compile_template({}, folder)


def prepare_bundle(folder: Path) -> None:
    build(load_recipe("stories260k"), folder / "stories.bundle")


def read_bundle(folder: Path) -> None:
    """Verified, and opened; files with code are damaged elsewhere, as no one can run those."""
    verify_bundle(folder / "stories.bundle")
    with Engine(folder / "stories.bundle", threads=1):
        pass


def read_code(folder: Path) -> None:
    verify_bundle(folder / "stories.bundle")


def prepare_texts(folder: Path) -> None:
    build(load_recipe("stories260k"), folder, Dump(folder / "dump"), stop_after="schedule")


def reading_texts(pattern: str, parse: Callable[[str], object]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for path in sorted((folder / "dump").glob(pattern))[:1]:
            parse(path.read_bytes().decode(errors="replace"))

    return read


READERS = (
    Reader(
        "safetensors", prepare_safetensors, {"x.safetensors": damage_safetensors}, read_safetensors
    ),
    Reader(
        "shards",
        prepare_shards,
        {"index.json": damage_json, "1.safetensors": damage_safetensors},
        read_shards,
    ),
    Reader("recipe", prepare_checkpoint, {"tiny.toml": damage_bytes}, read_checkpoint, 5),
    Reader("settings", prepare_settings, {"settings": damage_bytes}, read_settings),
    Reader(
        "checkpoint",
        prepare_checkpoint,
        {
            "checkpoint/config.json": damage_json,
            "checkpoint/generation_config.json": damage_json,
            "checkpoint/model.safetensors": damage_safetensors,
        },
        read_checkpoint,
        5,
    ),
    Reader(
        "build",
        prepare_checkpoint,
        {
            "tiny.toml": damage_bytes,
            "checkpoint/config.json": damage_json,
            "checkpoint/generation_config.json": damage_json,
            "checkpoint/model.safetensors": damage_safetensors,
            "checkpoint/tokenizer.json": damage_json,
        },
        read_whole_build,
        100,
    ),
    Reader(
        "tokenizer",
        prepare_tokenizer,
        {"tokenizer.json": damage_json, "tokenizer_config.json": damage_json},
        read_tokenizer,
        50,
    ),
    Reader(
        "byte tokenizer",
        prepare_byte_tokenizer,
        {"tokenizer.json": damage_json, "tokenizer_config.json": damage_json},
        read_tokenizer,
        50,
    ),
    Reader(
        "template",
        prepare_template,
        {"tokenizer_config.json": damage_json, "chat_template.jinja": damage_bytes},
        read_template,
        50,
    ),
    Reader(
        "bundle",
        prepare_bundle,
        {
            "stories.bundle/manifest.json": damage_json,
            "stories.bundle/weights.bin": damage_bytes,
            "stories.bundle/tokenizer/*": damage_bytes,
        },
        read_bundle,
        10,
    ),
    Reader("code", prepare_bundle, {"stories.bundle/lib/*": damage_bytes}, read_code, 10),
    Reader(
        "graph", prepare_texts, {"dump/00-*": damage_bytes}, reading_texts("00-*", parse_graph), 10
    ),
    Reader(
        "program",
        prepare_texts,
        {"dump/*-program.txt": damage_bytes},
        reading_texts("*-program.txt", parse_program),
        10,
    ),
    Reader(
        "kernel",
        prepare_texts,
        {"dump/kernels/*.kir": damage_bytes},
        reading_texts("kernels/*.kir", parse_kernel),
        10,
    ),
)
