# SPDX-License-Identifier: Apache-2.0
"""Write a Qwen3-MoE language model as GGUF: llama-cpp-python, gguf, torch and safetensors in an environment.

    python scripts/benchmark_tools/llama_files.py TEXT BF16.gguf Q4_0.gguf

TEXT is what benchmark_llm.py makes for transformers. BF16 are its values as they are; Q4_0 is llama.cpp's own rounding,
which leaves norms and routers in float32. Tokens are numbers: there is no tokenizer.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
EXPERT = re.compile(r"mlp\.experts\.0\.(gate|up|down)_proj")


def gguf_name(name: str) -> str | None:
    """llama.cpp's name of a tensor; of all experts that of the first one, which stands for a stack; None = another."""
    found = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name)
    if found is None:
        raise SystemExit(f"llama_files.py: tensor {name}: expected a weight")
    layer, part = found.groups()
    expert = EXPERT.fullmatch(part)
    if expert is None and ".experts." in part:
        return None
    own = f"ffn_{expert[1]}_exps" if expert else NAMES.get(part)
    if own is None:
        raise SystemExit(f"llama_files.py: tensor {name} has no place in llama.cpp's qwen3moe")
    return f"blk.{layer}.{own}.weight" if layer is not None else f"{own}.weight"


def write_sizes(writer: Any, config: dict[str, Any]) -> None:
    """What llama.cpp reads of a qwen3moe."""
    rope = config.get("rope_parameters") or config
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def write_bf16(text: Path, out: Path) -> None:
    """One tensor after the other, so that no more than a layer's stack of experts is in memory."""
    import gguf  # type: ignore[import-not-found]
    import torch
    from safetensors import safe_open

    config = json.loads((text / "config.json").read_text(encoding="utf-8"))
    files = [safe_open(path, "pt") for path in sorted(text.glob("*.safetensors"))]
    places = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (no dict)
    wanted = {own: name for name in places if (own := gguf_name(name)) is not None}
    writer = gguf.GGUFWriter(out, "qwen3moe")
    write_sizes(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for own, name in wanted.items():
        shape = [config["num_experts"]] * is_stack(own) + places[name].get_slice(name).get_shape()
        kind = gguf.GGMLQuantizationType.F32 if is_float(own) else gguf.GGMLQuantizationType.BF16
        size = 4 if is_float(own) else 2
        # The writer takes lengths in bytes of what is no type of NumPy.
        in_bytes = (*shape[:-1], size * shape[-1])
        writer.add_tensor_info(own, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for own, name in wanted.items():
        experts = range(config["num_experts"] if is_stack(own) else 1)
        names = [name.replace("experts.0.", f"experts.{i}.") for i in experts]
        found = torch.cat([places[each].get_tensor(each) for each in names])
        found = found.float() if is_float(own) else found.bfloat16()
        writer.write_tensor_data(found.view(torch.uint8).numpy())
    writer.close()


def is_stack(own: str) -> bool:
    """Whether the tensor holds all experts of a layer."""
    return "_exps" in own


def is_float(own: str) -> bool:
    """Whether llama.cpp wants float32: norms and routers."""
    return "norm" in own or "ffn_gate_inp" in own


def round_file(source: Path, out: Path) -> None:
    """Q4_0 as llama.cpp rounds a file."""
    import llama_cpp as llama  # type: ignore[import-not-found]

    settings = llama.llama_model_quantize_default_params()
    settings.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama.llama_model_quantize(str(source).encode(), str(out).encode(), settings):
        raise SystemExit(f"llama_files.py: llama.cpp could not round {source}; its message is above")


def main() -> None:
    """Parse and write."""
    text, bf16, q4_0 = map(Path, sys.argv[1:])
    write_bf16(text, bf16)
    round_file(bf16, q4_0)


if __name__ == "__main__":
    main()
