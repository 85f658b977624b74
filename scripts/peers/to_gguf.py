"""Write a Llama checkpoint as a GGUF file without a vocabulary, then quantize it with llama.cpp.

    python to_gguf.py CHECKPOINT OUT.gguf TYPE

The official converter knows the tokenizers of published models only; speed and perplexity from
token ids need none.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from checkpoint import interleaved, renamed, tensors

FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    return renamed(name, NAMES, "blk")


def float32(values: Any, dtype: str) -> Any:
    """bfloat16 bits or floats as float32: llama.cpp wants vectors so."""
    wide = values.astype(np.uint32) << 16 if dtype == "BF16" else values.astype(np.float32)
    return wide.view(np.float32)


def write(checkpoint: Path, out: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, dtype, values in tensors(checkpoint):
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), float32(values, dtype))
            continue
        if ".q_proj" in name or ".k_proj" in name:
            values = interleaved(values, heads if ".q_proj" in name else kv_heads)
        writer.add_tensor(gguf_name(name), values, raw_dtype=gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    checkpoint, out, file_type = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    import llama_cpp  # only an environment with llama.cpp can quantize

    whole = out.with_suffix(".whole")
    write(checkpoint, whole)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = FILE_TYPES[file_type]
    status = llama_cpp.llama_model_quantize(
        str(whole).encode(), str(out).encode(), ctypes.byref(settings)
    )
    whole.unlink()
    if status:
        sys.exit(f"llama_model_quantize failed with {status}")
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(out).tensors}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]  # one row of it is read
    out.with_suffix(".json").write_text(json.dumps({"streamed_bytes": sum(sizes.values())}))


if __name__ == "__main__":
    main()
