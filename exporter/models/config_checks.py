# SPDX-License-Identifier: Apache-2.0
"""The record of MoE blocks, and numbers of config.json that must go together, in every family. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.ops.sparse_moe.contract import GROUPED_METHODS


@dataclass(frozen=True)
class MoeConfig:
    """Sizes and routing rules of a model's MoE blocks; the strings are those of FmmSparseMoE's contract."""

    num_experts: int
    top_k: int
    intermediate_size: int
    scoring_func: str
    topk_method: str = "greedy"
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    activation: str = "swiglu"
    swiglu_limit: float = 0.0
    expert_bias: bool = False


def check_heads(language: ConfigReader, *, heads: int, kv_heads: int) -> None:
    """Raise UnsupportedModel unless each key-value head serves the same number of heads."""
    language.check(
        "num_key_value_heads", kv_heads, heads % kv_heads == 0, f"a divisor of num_attention_heads = {heads}"
    )


def check_rotary(language: ConfigReader, key: str, dim: int) -> None:
    """Raise UnsupportedModel unless the rotated part of a head has two halves."""
    language.check(key, dim, dim % 2 == 0, "an even number: rotary positions turn pairs")


def check_moe(language: ConfigReader, moe: MoeConfig) -> None:
    """Raise UnsupportedModel unless a token finds its experts and, where they are grouped, its groups."""
    E, G = moe.num_experts, moe.n_group
    language.check("num_experts_per_tok", moe.top_k, moe.top_k <= E, f"at most the {E} experts of a layer")
    if moe.topk_method in GROUPED_METHODS:
        language.check("n_group", G, E % G == 0, f"a divisor of the {E} experts of a layer")
        language.check("topk_group", moe.topk_group, moe.topk_group <= G, f"at most n_group = {G}")
    if moe.topk_method == "noaux_tc":
        language.check("n_group", G, E // G >= 2, f"at most half of the {E} experts: two of a group are its score")


def check_tower(vision: ConfigReader, width_key: str, *, width: int, heads: int, image_size: int, patch: int) -> None:
    """Raise UnsupportedModel unless heads share the width evenly and a picture holds a patch."""
    vision.check(width_key, width, width % heads == 0, f"a multiple of the {heads} attention heads")
    vision.check("patch_size", patch, patch <= image_size, f"at most image_size = {image_size}")
