"""Export a Llama checkpoint with ExecuTorch, as its documentation does it for Llama on CPUs.

    python to_executorch.py CHECKPOINT OUT CONTEXT

OUT gets model.pte: int4 weights in groups of 32 with int8 activations (8da4w) on XNNPACK, int8
embeddings, its own attention with a key and value cache, prompts of any length.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from checkpoint import interleaved, renamed, tensors

NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def meta_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight is layers.3.feed_forward.w3.weight."""
    return renamed(name, NAMES, "layers")


def state(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The weights under the names and with the rotary pairs of Meta's own files."""
    found = {}
    for name, dtype, values in tensors(source):
        if ".q_proj" in name:
            values = interleaved(values, config["num_attention_heads"])
        if ".k_proj" in name:
            values = interleaved(values, config["num_key_value_heads"])
        tensor = torch.from_numpy(values.copy())
        found[meta_name(name)] = tensor.view(torch.bfloat16) if dtype == "BF16" else tensor
    if "output.weight" not in found:
        found["output.weight"] = found["tok_embeddings.weight"]
    return found


def parameters(config: dict[str, Any]) -> dict[str, Any]:
    """params.json of Meta's models."""
    return {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "hidden_dim": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": config["rope_theta"],
    }


def main() -> None:
    source, out, context = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    weights, sizes = out / "weights.pth", out / "params.json"
    torch.save(state(source, config), weights)
    sizes.write_text(json.dumps(parameters(config)))
    settings = {
        "base.model_class": "llama3",
        "base.checkpoint": weights,
        "base.params": sizes,
        "base.metadata": '\'{"get_bos_id":1,"get_eos_ids":[2]}\'',
        "model.use_kv_cache": True,
        "model.use_sdpa_with_kv_cache": True,
        "model.dtype_override": "fp32",
        "quantization.qmode": "8da4w",
        "quantization.group_size": 32,
        "quantization.embedding_quantize": "'8,0'",
        "backend.xnnpack.enabled": True,
        "backend.xnnpack.extended_ops": True,
        "export.max_seq_length": context,
        "export.max_context_length": context,
        "export.output_dir": out,
        "export.output_name": "model.pte",
        "hydra.run.dir": out,
        "hydra.output_subdir": "null",
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    program = [sys.executable, "-m", "executorch.extension.llm.export.export_llm", *words]
    status = subprocess.call(program, cwd=out)
    weights.unlink()
    sizes.unlink()
    if status or not (out / "model.pte").exists():
        sys.exit(f"export_llm failed with {status}")


if __name__ == "__main__":
    main()
