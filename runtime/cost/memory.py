# SPDX-License-Identifier: Apache-2.0
"""What a bundle needs of memory beside its weights: caches, exactly; activations and workspace, estimated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmmoe.runtime.backends.batch import round_up
from fastmmoe.runtime.backends.elements import item_size, tensor_bytes
from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.types import Array


def layer_rows(manifest: Manifest, schedule: Schedule, tokens: int) -> Array:
    """Cached rows of every layer after a prompt of so many tokens, int64 [layers]."""
    prompt = Chunk(0, np.empty((tokens, 0)), np.arange(schedule.visual_tokens), schedule)
    return signatures.cached_rows(manifest.language_model, manifest.policy, prompt)


def cache_capacities(manifest: Manifest, schedule: Schedule, tokens: int, new_tokens: int) -> list[int]:
    """Rows that the caches of each layer group get room for: what is left of the prompt, and the answer."""
    rows = layer_rows(manifest, schedule, tokens)
    groups = signatures.layer_groups(manifest.language_model.layers, manifest.policy.sites)
    longest = manifest.processor.max_position_embeddings
    return [round_up(min(int(rows[layers[0]]) + new_tokens, longest)) for layers in groups]


def cache_bytes(manifest: Manifest, capacities: Sequence[int], sequences: int = 1) -> int:
    """Bytes of the caches of so many sequences."""
    info, policy = manifest.language_model, manifest.policy
    shapes = signatures.cache_shapes(info, policy, manifest.cache_dtype, sequences, capacities)
    return sum(tensor_bytes(shape, dtype) for shape, dtype in shapes.values())


def vision_bytes(manifest: Manifest, limits: Limits, heads: int, tile_size: int) -> int:
    """Estimate of the vision graph's activations at the most tiles: of a block its greatest moment, all of it written.

    States and their norm beside either queries, keys, values and the scores of every pair, or the MLP's hidden layer;
    the tiles' pixels and the features come on top. An engine that fuses attention writes no scores.

    Args:
        heads: of the tower.
        tile_size: side of a tile in pixels.
    """
    v, tiles = manifest.vision, limits.max_tiles
    rows = tiles * v.rows_per_tile
    attention = 4 * rows * v.width + 2 * heads * rows * v.rows_per_tile
    elements = 2 * rows * v.width + max(attention, rows * v.mlp_width)
    pixels = tiles * 3 * tile_size**2
    features = limits.max_visual * manifest.language_model.hidden_size
    return (elements + pixels + features) * item_size(manifest.activation_dtype)


def workspace_bytes(manifest: Manifest, limits: Limits) -> int:
    """Estimate of what the language model writes in the greatest prefill beside its caches, one layer at a time.

    Embeddings, residual stream and norm beside the greater of attention (latent attention absorbed) and the MoE block,
    whose rows for each expert are those of plugins/sparse_moe; logits come on top.
    """
    info, T, size = manifest.language_model, limits.max_tokens, item_size(manifest.activation_dtype)
    query_width = info.kv_lora_rank + info.rope_dim if info.kv_lora_rank else info.query_key_dim
    value_width = info.kv_lora_rank or info.value_dim
    keys = 0 if info.kv_lora_rank else info.kv_heads * (info.query_key_dim + info.value_dim)
    attention = T * (info.heads * (query_width + value_width) + keys) * size
    slots = T * info.top_k
    experts = slots * (info.moe_intermediate_size + info.hidden_size) * size + T * info.num_experts * 8
    shared = 2 * T * max(info.shared_intermediate_size, info.dense_intermediate_size) * size
    return 3 * T * info.hidden_size * size + max(attention, experts, shared) + 4 * limits.max_batch * info.vocab_size
