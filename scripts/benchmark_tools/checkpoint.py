# SPDX-License-Identifier: Apache-2.0
"""A random checkpoint with the layers of InternVL3.5-30B-A3B's language model, fewer of them, for timing only.

Every matrix of a decoder layer has its true size. Cut down are the number of layers, the vocabulary and the vision
tower, none of which the benchmark measures. The weights are scaled so that router and attention are as decisive as
in a trained model: uniform routing would touch every expert for a handful of tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmark_tools.errors import BenchmarkError
from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models.internvl3_5 import weight_map
from fastmmoe.exporter.models.internvl3_5_config import read_config

SEED = 20251117
VOCAB_SIZE = 2048
INDEX_FILE = "model.safetensors.index.json"

# Standard deviations for inputs of unit variance. A router logit has the first, an attention score the square of the
# second: Qwen3 normalises every head of queries and keys, so these norms' weights alone set it.
_ROUTER_GAIN = 2.5
_QUERY_KEY_GAIN = 1.6
_LOGIT_GAIN = 3.0

_TEXT: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {
    "model_type": "internvl_vision",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "attention_bias": True,
    "use_qk_norm": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "use_mean_pooling": True,
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
}


def write_checkpoint(directory: Path, layers: int) -> int:
    """Write config.json and the weights (bfloat16), a file for each layer; only one layer is in memory at a time.

    Args:
        directory: new or empty, so that no weights of another run stay beside these.
        layers: decoder layers, at least 1. A layer takes 1.25 GB.
    Returns:
        Bytes of the weights.
    Raises:
        BenchmarkError: the directory holds something, or layers is below 1.
    """
    if layers < 1:
        raise BenchmarkError(f"--layers {layers}: expected at least 1")
    if directory.exists() and any(directory.iterdir()):
        raise BenchmarkError(f"{directory} is not empty; give a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    config = config_of(layers)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    generator = torch.Generator().manual_seed(SEED)
    files: dict[str, str] = {}
    size = 0
    for file, shapes in shapes_by_file(config, layers):
        size += _write_file(directory / file, shapes, generator)
        files |= dict.fromkeys(shapes, file)
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return size


def config_of(layers: int, text: dict[str, Any] | None = None) -> dict[str, Any]:
    """config.json of such a checkpoint; text: sizes of the language model that are others."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "dtype": "bfloat16",
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": VOCAB_SIZE - 1,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": _TEXT | {"num_hidden_layers": layers} | (text or {}),
        "vision_config": _VISION,
    }


def shapes_by_file(config: dict[str, Any], layers: int) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """(file, shapes of its tensors): one of every decoder layer, then one of all the rest."""
    rules = weight_map(read_config(ConfigReader(config))).values()
    shapes = {name: shape for rule in rules for name, shape in rule.sources}
    for layer in range(layers):
        prefix = f"language_model.model.layers.{layer}."
        own = {name: shapes.pop(name) for name in list(shapes) if name.startswith(prefix)}
        yield f"model-{layer + 1:05d}-of-{layers + 1:05d}.safetensors", own
    yield f"model-{layers + 1:05d}-of-{layers + 1:05d}.safetensors", shapes


def _write_file(path: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> int:
    """Bytes of the tensors, which are gone from memory when this returns."""
    tensors = {name: random_tensor(name, shape, generator) for name, shape in shapes.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """bfloat16 values of a tensor of the checkpoint."""
    mean, std = distribution(name, shape)
    return torch.empty(shape).normal_(mean, std, generator=generator).to(torch.bfloat16)


def distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values."""
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return _QUERY_KEY_GAIN, 0.1
    if name.endswith(("norm.weight", "layernorm.weight", "layernorm_before.weight", "layernorm_after.weight")):
        return 1.0, 0.1
    if len(shape) == 1:
        return 0.0, 0.1
    if name.endswith("embed_tokens.weight"):
        return 0.0, 1.0
    gain = 1.0
    if name.endswith("mlp.gate.weight"):
        gain = _ROUTER_GAIN
    elif name.endswith("lm_head.weight"):
        gain = _LOGIT_GAIN
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))
