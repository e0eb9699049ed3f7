# SPDX-License-Identifier: Apache-2.0
"""FLOPs of one request (spec section 5): one multiply-add = 2 FLOPs, attention over the causal half, MLA expanded."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fastmmoe.runtime import abi
from fastmmoe.runtime.bundle import LanguageModelInfo, VisionInfo
from fastmmoe.runtime.policy import Policy, Schedule


@dataclass
class PrefillFlops:
    """FLOPs of a prefill of the language model, by part."""

    projections: int = 0
    attention: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    dense: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def prefill_flops(info: LanguageModelInfo, policy: Policy, schedule: Schedule, tokens: int) -> PrefillFlops:
    """FLOPs of the prefill of one sequence.

    Args:
        tokens: T of the prompt, visual tokens included.
        schedule: of the request; `plan_request` gives it.
    """
    flops = PrefillFlops(head=2 * info.hidden_size * info.vocab_size)
    groups = abi.layer_groups(info.layers, policy.prune_layers)
    text = tokens - schedule.visual_tokens
    visual = (schedule.visual_tokens, *schedule.keep)
    for group, layers in enumerate(groups):
        for layer in layers:
            rows = text + visual[group]
            after = visual[group + 1] if layer in policy.prune_layers else visual[group]
            flops.projections += 2 * rows * _projection_weights(info)
            flops.attention += 2 * info.heads * (info.query_key_dim + info.value_dim) * _pairs(info, layer, rows)
            _add_feed_forward(flops, info, layer, text, after, schedule)
    return flops


def vision_flops(info: VisionInfo, hidden_size: int, tiles: int) -> int:
    """FLOPs of the vision graph for this many tiles."""
    rows, width = info.rows_per_tile, info.width
    block = 2 * rows * (4 * width * width + 2 * width * info.mlp_width) + 4 * rows * rows * width
    patches = 2 * rows * info.patch_inputs * width
    projector = 2 * info.tokens_per_tile * (info.projector_inputs * hidden_size + hidden_size * hidden_size)
    return tiles * (patches + info.layers * block + projector)


def _projection_weights(info: LanguageModelInfo) -> int:
    """Weights of a layer's attention projections."""
    queries = info.hidden_size * info.heads * info.query_key_dim
    output = info.heads * info.value_dim * info.hidden_size
    if not info.kv_lora_rank:
        return queries + info.hidden_size * info.kv_heads * (info.query_key_dim + info.value_dim) + output
    latent = info.hidden_size * (info.kv_lora_rank + info.rope_dim)
    expanded = info.kv_lora_rank * info.heads * (info.query_key_dim - info.rope_dim + info.value_dim)
    return queries + latent + expanded + output


def _pairs(info: LanguageModelInfo, layer: int, rows: int) -> int:
    """Query-key pairs of the causal half, within the window of a sliding layer."""
    if layer not in info.sliding_layers or info.sliding_window is None or rows <= info.sliding_window:
        return rows * (rows + 1) // 2
    window = info.sliding_window
    return window * (window + 1) // 2 + (rows - window) * window


def _add_feed_forward(
    flops: PrefillFlops, info: LanguageModelInfo, layer: int, text: int, visual: int, schedule: Schedule
) -> None:
    rows = text + visual
    if layer not in info.moe_layers:
        flops.dense += 6 * rows * info.hidden_size * info.dense_intermediate_size
        return
    visual_top_k = schedule.visual_top_k[info.moe_layers.index(layer)]
    uses = text * info.top_k + visual * visual_top_k
    flops.router += 2 * rows * info.hidden_size * info.num_experts
    flops.routed_experts += 6 * uses * info.hidden_size * info.moe_intermediate_size
    flops.shared_experts += 6 * rows * info.hidden_size * info.shared_intermediate_size
