"""Write a checkpoint of random bfloat16 weights, to measure builds and speed at any size.

    python scripts/random_checkpoint.py tinyllama-1.1b OUT
    python scripts/random_checkpoint.py llama-7b OUT --layers 4 --seed 1

The same shape and seed give the same bytes. OUT gets config.json, safetensors in shards, their
index and tokenizer.json (copied with --tokenizer, else one of bytes and made-up words). Memory is
one block of weights: random numbers are drawn once and used again, shifted, in every tensor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

# A prime number of weights, so that repeats of the block never line up with rows.
BLOCK_WEIGHTS = 4_194_301
SHARD_BYTES = 1 << 30
DEVIATION = 0.02
BYTES = 2  # of a bfloat16


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model, named as on the command line."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    context: int

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order they are written."""
        kv = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.k_proj.weight", (kv, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (kv, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{at}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.inner)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)


PRESETS = {
    "15m": Shape(288, 6, 6, 6, 768, 32000, 2048),
    "160m": Shape(768, 12, 12, 12, 3072, 32000, 2048),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, 8192),
    "tinyllama-1.1b": Shape(2048, 22, 32, 4, 5632, 32000, 2048),
    "llama-7b": Shape(4096, 32, 32, 32, 11008, 32000, 4096),
}


class Weights:
    """An endless ring of normally distributed bfloat16, from which every tensor takes its part."""

    def __init__(self, seed: int) -> None:
        values = np.random.default_rng(seed).standard_normal(BLOCK_WEIGHTS, dtype=np.float32)
        self._block = bfloat16(values * np.float32(DEVIATION))
        self._ones = bfloat16(np.ones(1 << 16, np.float32))
        self._at = 0

    def take(self, shape: tuple[int, ...]) -> Iterator[memoryview]:
        """The bytes of a tensor in pieces: matrices are random, the weights of norms are 1."""
        left = int(np.prod(shape))
        if len(shape) == 1:
            yield np.resize(self._ones, left).data.cast("B")
            return
        while left:
            count = min(left, BLOCK_WEIGHTS - self._at)
            yield self._block[self._at : self._at + count].data.cast("B")
            self._at = (self._at + count) % BLOCK_WEIGHTS
            left -= count


def bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; values are finite."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def shards(shape: Shape, shard_bytes: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors, cut into files of about `shard_bytes`."""
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in shape.tensors():
        tensor_bytes = BYTES * int(np.prod(size))
        if files[-1] and filled + tensor_bytes > shard_bytes:
            files.append([])
            filled = 0
        files[-1].append((name, size))
        filled += tensor_bytes
    return files


def header(tensors: list[tuple[str, tuple[int, ...]]]) -> bytes:
    """The beginning of a safetensors file: its length in 8 bytes, then JSON, padded to 8 bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + BYTES * int(np.prod(shape))
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_weights(out: Path, shape: Shape, seed: int, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the shards and their index; returns the number of bytes of weights."""
    weights = Weights(seed)
    files = shards(shape, shard_bytes)
    places: dict[str, str] = {}
    total = 0
    for i, tensors in enumerate(files, start=1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        with (out / name).open("wb") as file:
            file.write(header(tensors))
            for tensor, size in tensors:
                places[tensor] = name
                for piece in weights.take(size):
                    total += file.write(piece)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def write_tokenizer(out: Path, vocab: int) -> None:
    """A byte-level tokenizer: 3 special tokens, 256 bytes, and words that no text becomes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"word{i}" for i in range(len(pieces), vocab)]
    vocabulary = {piece: i for i, piece in enumerate(pieces[:vocab])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))


def write_checkpoint(out: Path, shape: Shape, seed: int, tokenizer: Path | None) -> int:
    """Write the whole checkpoint into the new or empty directory `out`; its bytes of weights."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        sys.exit(f"{out} is not empty")
    (out / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    if tokenizer is None:
        write_tokenizer(out, shape.vocab)
    else:
        shutil.copyfile(tokenizer, out / "tokenizer.json")
    return write_weights(out, shape, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json to copy")
    sizes = [field.name for field in fields(Shape)]
    for size in sizes:
        option = f"--{size.replace('_', '-')}"
        parser.add_argument(option, type=int, metavar="N", help="in place of the preset's")
    options = parser.parse_args()
    chosen = {size: value for size in sizes if (value := getattr(options, size)) is not None}
    shape = replace(PRESETS[options.preset], **chosen)
    total = write_checkpoint(options.out, shape, options.seed, options.tokenizer)
    print(f"{options.out}: {total:,} bytes of weights", file=sys.stderr)


if __name__ == "__main__":
    main()
