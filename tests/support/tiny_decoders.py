# SPDX-License-Identifier: Apache-2.0
"""Decoders of a few layers with random weights, the first of them dense, and what a manifest would say of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastmmoe.exporter.models.attention import GroupedAttention
from fastmmoe.exporter.models.config_checks import MoeConfig
from fastmmoe.exporter.models.decoder import DecoderLayer, LanguageModel, MoeBlock
from fastmmoe.exporter.models.layers import Mlp, RMSNorm, SparseMoe, rotary_frequencies
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo

H, HEADS, VOCAB, DEPTH = 8, 2, 11, 4
MOE = MoeConfig(num_experts=4, top_k=2, intermediate_size=3, scoring_func="softmax")


def decoder(
    *, window: int | None = None, sliding: tuple[int, ...] = (0, 2), has_sinks: bool = False, **options: Any
) -> LanguageModel:
    """Four layers with random weights; with a window some slide."""
    every = tuple(range(DEPTH))
    full = tuple(i for i in every if window is None or i not in sliding)
    moe_and_full = Layers(DEPTH, every[1:], full, MOE.top_k)
    policy = resolve_policy(PolicyOptions(**options), family="deepseek_vl2", layers=moe_and_full)
    layers = []
    for i in every:
        of_layer = 0 if i in full else window or 0
        attention = GroupedAttention(H, HEADS, 1, H // HEADS, window=of_layer, has_sinks=has_sinks)
        mlp: nn.Module = Mlp(H, 6) if i == 0 else MoeBlock(SparseMoe(H, MOE, "none"), Mlp(H, 3))
        layers.append(DecoderLayer(attention, mlp, RMSNorm(H, 1e-6), RMSNorm(H, 1e-6)))
    model = LanguageModel(layers, RMSNorm(H, 1e-6), nn.Linear(H, VOCAB, bias=False), H // HEADS, policy)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    model.inv_freq.data = rotary_frequencies(100.0, H // HEADS)
    return model


def info_of(model: LanguageModel) -> LanguageModelInfo:
    """What the manifest of its bundle would say."""
    windows = [layer.self_attn.window for layer in model.layers]
    return LanguageModelInfo(
        hidden_size=H,
        vocab_size=VOCAB,
        layers=DEPTH,
        heads=HEADS,
        kv_heads=1,
        query_key_dim=H // HEADS,
        value_dim=H // HEADS,
        kv_lora_rank=0,
        rope_dim=H // HEADS,
        cache_parts=("key", "value"),
        cache_shape=(1, H // HEADS),
        moe_layers=model.moe_layers,
        num_experts=MOE.num_experts,
        top_k=MOE.top_k,
        moe_intermediate_size=MOE.intermediate_size,
        shared_intermediate_size=3,
        dense_intermediate_size=6,
        sliding_layers=tuple(i for i, window in enumerate(windows) if window),
        sliding_window=max(windows) or None,
    )
