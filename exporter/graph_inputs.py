# SPDX-License-Identifier: Apache-2.0
"""The inputs of each graph, with symbolic dimensions (names and meaning: runtime/abi.py)."""

from __future__ import annotations

from typing import Any

import torch

from fastmmoe.exporter.families import Model
from fastmmoe.exporter.tracing import GraphInput
from fastmmoe.runtime import abi
from fastmmoe.runtime.policy import Site


def graph_inputs(model: Model, graph: str) -> list[GraphInput]:
    """Inputs of the graph "vision", "embedding" or "language_model"."""
    return {"vision": _vision, "embedding": _embedding, "language_model": _language_model}[graph](model)


def cache_shape(config: Any) -> tuple[int, ...]:
    """Dimensions of one layer's cache tensor without its length: (Nkv, D), or (rank + rope,) for latent attention."""
    mla = getattr(config, "mla", None)
    if mla is not None:
        return (mla.kv_lora_rank + mla.qk_rope_head_dim,)
    return (config.num_key_value_heads, config.head_dim)


def _vision(model: Model) -> list[GraphInput]:
    side = model.config.vision.image_size
    inputs = [GraphInput(abi.PIXEL_VALUES, ("tiles", 3, side, side), model.precision.activations, minimum=1)]
    if model.family == "deepseek_vl2":
        inputs.append(GraphInput(abi.LAYOUT_INDEX, ("V",), torch.int32, minimum=1))
    return inputs


def _embedding(model: Model) -> list[GraphInput]:
    return [GraphInput(abi.INPUT_IDS, ("T",), torch.int32, minimum=1)]


def _language_model(model: Model) -> list[GraphInput]:
    config, policy = model.config, model.policy
    inputs = [
        GraphInput(abi.INPUTS_EMBEDS, ("T", config.hidden_size), model.precision.activations, minimum=1),
        GraphInput(abi.POSITION_IDS, ("T",), torch.int32, minimum=1),
        GraphInput(abi.SEQUENCE_IDS, ("T",), torch.int32, minimum=1),
        _offsets(abi.SEQUENCE_OFFSETS),
        GraphInput(abi.VISUAL_INDEX, ("V",), torch.int32),
    ]
    if policy.method != "none":
        inputs.append(_offsets(abi.VISUAL_OFFSETS))
        inputs.append(GraphInput(abi.VISUAL_TOP_K, (len(config.moe_layers),), torch.int32))
        inputs.append(GraphInput(abi.ALPHA, (len(policy.sites),), torch.float32))
    if policy.method == "all":
        inputs.append(GraphInput(abi.METHOD, (1,), torch.int32))
    if "random" in policy.methods:
        inputs.append(GraphInput(abi.RANDOM_SCORES, ("V",), torch.float32))
    if "sparsevlm" in policy.methods:
        inputs.append(GraphInput(abi.RATER_SLOTS, ("Q",), torch.int8))
    for s, site in enumerate(policy.sites):
        inputs += _site(s, site)
    return inputs + _caches(model)


def _offsets(name: str) -> GraphInput:
    return GraphInput(name, ("offsets",), torch.int32, minimum=2)


def _site(s: int, site: Site) -> list[GraphInput]:
    inputs = [GraphInput(abi.keep_slots(s), (f"K{s}",), torch.int8), _offsets(abi.keep_offsets(s))]
    if abi.takes_merges(site):
        inputs.append(GraphInput(abi.merge_slots(s), (f"M{s}",), torch.int8))
    if abi.takes_merge_offsets(site):
        inputs.append(_offsets(abi.merge_offsets(s)))
    if abi.takes_recycling(site):
        inputs.append(GraphInput(abi.recycle_slots(s), (f"N{s}",), torch.int8))
    return inputs


def _caches(model: Model) -> list[GraphInput]:
    language_model = model.graphs.language_model
    inputs = []
    for g, layers in enumerate(language_model.groups):
        for i in layers:
            parts = language_model.layers[i].self_attn.cache_parts
            *heads, width = cache_shape(model.config)
            shape: tuple[int | str, ...] = (1, *heads, f"S{g}", width)
            inputs += [GraphInput(name, shape, model.precision.activations) for name in abi.past_names(i, parts)]
        if language_model.sliding_window is not None:
            inputs.append(GraphInput(abi.past_position_ids(g), (f"S{g}",), torch.int32))
        inputs.append(GraphInput(abi.past_sequence_ids(g), (f"S{g}",), torch.int32))
    return inputs
