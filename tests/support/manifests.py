# SPDX-License-Identifier: Apache-2.0
"""A small manifest of each family, and a bundle that has one."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from fastmmoe.runtime.bundle.manifest import FORMAT, Manifest, parse_manifest, write_manifest

DEEPSEEK_PROCESSOR = {
    "type": "deepseek_vl2",
    "candidate_resolutions": [[16, 16], [16, 32]],
    "patch_size": 4,
    "downsample_ratio": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "pad_color": [127, 127, 127],
    "global_view_first": True,
    "template": "deepseek",
    "image_token": "<image>",
    "image_token_id": 9,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "special_tokens": ["<image>"],
    "stop_token_ids": [1],
    "vocab_size": 10,
    "max_position_embeddings": 64,
}
INTERNVL_PROCESSOR = {
    "type": "internvl",
    "tile_size": 16,
    "tokens_per_tile": 4,
    "min_tiles": 1,
    "max_tiles": 6,
    "use_thumbnail": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "template": "internvl2_5",
    "image_token": "<IMG_CONTEXT>",
    "image_start_token": "<img>",
    "image_end_token": "</img>",
    "image_token_id": 9,
    "bos_token_id": 0,
    "pad_token_id": 2,
    "stop_token_ids": [1],
    "vocab_size": 10,
    "max_position_embeddings": 64,
}
LANGUAGE_MODEL = {
    "hidden_size": 8,
    "vocab_size": 10,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "query_key_dim": 6,
    "value_dim": 6,
    "kv_lora_rank": 0,
    "rope_dim": 6,
    "cache_parts": ["key", "value"],
    "cache_shape": [2, 6],
    "moe_layers": [1, 2, 3],
    "num_experts": 16,
    "top_k": 4,
    "moe_intermediate_size": 8,
    "shared_intermediate_size": 0,
    "dense_intermediate_size": 16,
    "sliding_layers": [],
    "sliding_window": None,
}
POLICY = {
    "method": "fastmmoe",
    "prune_layers": {"fastmmoe": [1, 2]},
    "stage_exponents": [0.5, 1.0],
    "retention": 0.5,
    "alpha": 0.3,
    "merge_ratio": 0.05,
    "window": 3,
    "merge": "mlerp",
    "visual_top_k": [4, 2, 2],
    "reduction_weights": "preserve_sum",
    "sparsevlm_positions": "compact",
}
FILES = ("embedding.onnx", "language_model.onnx", "language_model.portable.onnx", "tokenizer.json", "vision.onnx")


def manifest_document(family: str) -> dict[str, Any]:
    """A small manifest as plain data, which may be changed; its files hold their own names."""
    entries = {name: {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in FILES}
    document = {
        "format": FORMAT,
        "fastmmoe_version": "0",
        "model": "toy",
        "family": family,
        "checkpoint_identity": "0",
        "target": "cpu",
        "dtype": "fp32",
        "activation_dtype": "float32",
        "cache_dtype": "float32",
        "experts": {"weight_format": "float", "group_size": 0, "zero_points": False},
        "linears": {
            part: {"weight_format": "float", "group_size": 0, "zero_points": False}
            for part in ("dense", "head", "vision")
        },
        "ops": {"FmmAttention": 1, "FmmSparseMoE": 1, "FmmTokenPrune": 1},
        "portable": True,
        "plugin": None,
        "policy": POLICY,
        "processor": DEEPSEEK_PROCESSOR if family == "deepseek_vl2" else INTERNVL_PROCESSOR,
        "vision": {
            "layers": 1,
            "width": 8,
            "mlp_width": 8,
            "rows_per_tile": 16,
            "patch_inputs": 48,
            "tokens_per_tile": 4,
            "projector_inputs": 8,
        },
        "language_model": LANGUAGE_MODEL,
        "files": entries,
        "sha256": "",
    }
    return copy.deepcopy(document)


def toy_manifest(family: str, **changes: Any) -> Manifest:
    """`manifest_document` as it is read, with these keys instead of its own."""
    return parse_manifest(json.dumps(manifest_document(family) | changes).encode(), Path("manifest.json"))


def write_toy_bundle(directory: Path) -> Path:
    """A new directory that is a bundle by its manifest; its graphs are none."""
    directory.mkdir()
    for name in FILES:
        (directory / name).write_text(name)
    write_manifest(directory, toy_manifest("deepseek_vl2"))
    return directory
