"""Damage files and read them: each must be read, or be refused by one sentence.

    python scripts/fuzz.py --minutes 10
    python scripts/fuzz.py tokenizer bundle --count 500 --seed 7
    python scripts/fuzz.py tokenizer --seed 7123 --count 1 --traceback

Every input follows from its reader's name and its number alone. An input is a finding where reading
it ends in anything but an OndeviceError of one short line, takes more than 20 seconds of processor
time, or wants more than 2 GiB. The readers written in C have drivers of their own in tests/, which
run under sanitizers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from ondevice.build import build
from ondevice.bundle.program_text import parse_program
from ondevice.bundle.verify import verify_bundle
from ondevice.checkpoint.safetensors import close_files, open_file, open_sharded, parse_json
from ondevice.debug import Dump
from ondevice.dtypes import bf16, f16, f32
from ondevice.errors import GraphError, KernelError, OndeviceError, RecipeError
from ondevice.graph.text import parse_graph
from ondevice.lang.text import parse_kernel
from ondevice.recipe import edit, load_recipe
from ondevice.runtime.engine import Engine
from ondevice.tokenizer import compile_tokenizer
from ondevice.tokenizer.template import compile_template

SECONDS, BYTES = 20, 2 << 30  # what one input may take
LETTERS = 2000  # of an error's message
STORIES = Path(__file__).resolve().parents[1] / "recipes" / "stories260K"

# ---- damage ----

NUMBERS = (
    *(0, 1, -1, 2, 3, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
)
TEXTS = (
    *("", " ", "a", "\0", "\n", "\ud800", "\u00e9", "\U0001f600", "..", "../x", "/dev/zero"),
    *("a" * 70000, "%s%n", "{", "}", "{layer}", "[a-z", "(a*)*b", "<s>", "f32", "BF16", "LSTM"),
)
VALUES = (None, True, False, [], {}, [[]], [0], [None], {"": 0}, {"type": "Sequence"}, {"a": {}})


def damage_bytes(source: random.Random, data: bytes) -> bytes:
    """One to four small changes: of bits, bytes, numbers written in digits, of order and length."""
    for _ in range(source.choice((1, 1, 2, 4))):
        data = source.choice(BYTE_CHANGES)(source, data)
    return data


def place(source: random.Random, data: bytes) -> int:
    """Somewhere in the data, often near its start, where headers are."""
    most = len(data) if source.random() < 0.5 else min(len(data), 128)
    return source.randrange(most + 1)


def flip(source: random.Random, data: bytes) -> bytes:
    at = place(source, data)
    return (
        data[:at] + bytes(b ^ 1 << source.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]
    )


def overwrite(source: random.Random, data: bytes) -> bytes:
    at, new = place(source, data), source.choice((b"\xff" * 8, bytes(8), source.randbytes(4)))
    new = new[: source.choice((1, 4, 8))]
    return data[:at] + new + data[at + len(new) :]


def insert(source: random.Random, data: bytes) -> bytes:
    at = place(source, data)
    word = source.choice((*TEXTS, "[" * 100000, '{"a":' * 5000, '"', ",", "]", "=", "null"))
    return data[:at] + word.encode(errors="surrogatepass") + data[at:]


def cut(source: random.Random, data: bytes) -> bytes:
    at = place(source, data)
    return data[:at] + data[at + source.choice((1, 8, 64, len(data))) :]


def repeat(source: random.Random, data: bytes) -> bytes:
    at, length = place(source, data), source.choice((1, 8, 64, 1000))
    return data[:at] + data[at : at + length] * 2 + data[at + length :]


def splice(source: random.Random, data: bytes) -> bytes:
    a, b = place(source, data), place(source, data)
    return data[:a] + data[b:]


def renumber(source: random.Random, data: bytes) -> bytes:
    """Another number in place of one that is written in digits."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
    if not found:
        return flip(source, data)
    number = source.choice(found)
    new = source.choice((*map(str, NUMBERS[:-2]), "1e999", "0x10", "1_0", "+1"))
    return data[: number.start()] + new.encode() + data[number.end() :]


BYTE_CHANGES = (flip, overwrite, insert, cut, repeat, splice, renumber, renumber)


def damage_json(source: random.Random, data: bytes) -> bytes:
    """Changes of the tree: values, keys, elements; sometimes of the bytes."""
    if source.random() < 0.3:
        return damage_bytes(source, data)
    tree = json.loads(data)
    for _ in range(source.choice((1, 1, 2, 3))):
        change_tree(source, tree)
    return json.dumps(tree).encode()


def change_tree(source: random.Random, tree: Any) -> None:
    """One change somewhere below `tree`, a dict or list."""
    at = tree
    while True:
        if not at:
            return
        key = source.choice(list(at)) if isinstance(at, dict) else source.randrange(len(at))
        if not isinstance(at[key], dict | list) or source.random() < 0.3:
            break
        at = at[key]
    kind = source.randrange(5)
    if kind == 0:
        del at[key]
    elif kind == 1 and isinstance(at, dict):
        at[source.choice((str(key) + "x", str(key).upper(), source.choice(TEXTS)))] = at.pop(key)
    elif kind == 2:
        other = source.choice(list(at)) if isinstance(at, dict) else source.randrange(len(at))
        at[key], at[other] = at[other], at[key]
    elif kind == 3 and isinstance(at[key], str):
        at[key] = damage_bytes(source, at[key].encode(errors="replace")).decode(errors="replace")
    else:
        at[key] = source.choice(
            (source.choice(NUMBERS), source.choice(TEXTS), source.choice(VALUES))
        )


def damage_safetensors(source: random.Random, data: bytes) -> bytes:
    """Changes of the header, its length kept right, or of any byte."""
    if source.random() < 0.3:
        return damage_bytes(source, data)
    size = int.from_bytes(data[:8], "little")
    header = damage_json(source, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


# ---- what is read ----


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

# ---- running ----


class TooSlow(BaseException):
    """More than SECONDS of processor time; no reader may catch it."""


def out_of_time(*_: object) -> None:
    raise TooSlow


def problem(reader: Reader, folder: Path) -> BaseException | None:
    """What is wrong with how `reader` took the files, or None."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(folder)
    except OndeviceError as error:
        lines = 3 if isinstance(error, GraphError | KernelError) else 1  # they show the place
        if str(error).count("\n") >= lines or len(str(error)) > LETTERS:
            return error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def fuzz(reader: Reader, seeds: Iterator[int], trace: bool) -> tuple[int, Counter[str]]:
    """(inputs, findings by kind); prints the first of each kind."""
    inputs, found = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        reader.prepare(folder)
        reader.read(folder)  # which takes what is intact
        for seed in seeds:
            source = random.Random(f"{reader.name} {seed}")
            pattern = source.choice(list(reader.files))
            path = source.choice(sorted(folder.glob(pattern)))
            intact = path.read_bytes()
            path.write_bytes(reader.files[pattern](source, intact))
            error = problem(reader, folder)
            if error is not None:
                kind = describe(error)
                if trace:
                    traceback.print_exception(error)
                elif not found[kind]:
                    print(f"{reader.name}, seed {seed}, {path.name}: {kind}", flush=True)
                found[kind] += 1
            path.write_bytes(intact)
            inputs += 1
    return inputs, found


def describe(error: BaseException) -> str:
    """The exception and the last of our lines that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ondevice" in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {at}: {str(error)[:160]!r}"


def seeds_until(first: int, end: float) -> Iterator[int]:
    for seed in count(first):
        if time.monotonic() >= end:
            return
        yield seed


def limit_memory() -> None:
    """Let this process have BYTES more of address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Damage files and read them.")
    names = [reader.name for reader in READERS]
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(names))
    parser.add_argument("--minutes", type=float, help="for all readers together")
    parser.add_argument("--count", type=int, default=1000, help="inputs of the cheapest readers")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--traceback", action="store_true", help="of every finding")
    options = parser.parse_args(arguments)
    unknown = set(options.readers) - set(names)
    if unknown:
        parser.error(f"no reader {unknown.pop()!r}; there are {', '.join(names)}")
    chosen = [r for r in READERS if not options.readers or r.name in options.readers]
    signal.signal(signal.SIGPROF, out_of_time)
    limit_memory()
    findings = 0
    for reader in chosen:
        begin = time.monotonic()
        seeds: Iterator[int] = iter(
            range(options.seed, options.seed + max(1, options.count // reader.cost))
        )
        if options.minutes:
            seeds = seeds_until(options.seed, begin + 60 * options.minutes / len(chosen))
        inputs, found = fuzz(reader, seeds, options.traceback)
        seconds = time.monotonic() - begin
        print(f"{reader.name}: {inputs} inputs in {seconds:.1f} s, {found.total()} findings")
        findings += found.total()
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
