# SPDX-License-Identifier: Apache-2.0
"""What each part of a graph's call demands at least: FLOPs, and bytes of weights and caches that have to be read.

Norms, rotary positions and pruning read no weights that count; what passes between parts is left out everywhere.
Routing is taken to be even and independent, as the kernel report does: E (1 - (1 - k / E)^T) experts of a layer are
read. A prompt that is routed to fewer reads less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastmmoe.runtime.backends.elements import item_size
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest
from fastmmoe.runtime.cost.flops import PrefillFlops, count_layers, head_flops, vision_parts_flops
from fastmmoe.runtime.cost.weights import EXPERTS, HEAD, vision_part_bytes
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import Schedule

ATTENTION_BLOCK = ("projections", "attention")
FEED_FORWARD_BLOCK = ("router", EXPERTS, "shared_experts", "dense")
"""Parts of a layer, by the names of `PrefillFlops`, that have matrices or caches."""
OTHERS = ("pruning", "norms", "rope")


@dataclass(frozen=True)
class Demand:
    """FLOPs, and bytes to be read."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Demand) -> Demand:
        return Demand(self.flops + other.flops, self.bytes + other.bytes)


def sum_of(demands: Iterable[Demand]) -> Demand:
    """Their sum."""
    return sum(demands, start=Demand())


def vision_demands(manifest: Manifest, tiles: int) -> dict[str, Demand]:
    """Of the vision graph on so many tiles: patches, attention, mlp, projector."""
    flops = vision_parts_flops(manifest.vision, manifest.language_model.hidden_size, tiles)
    sizes = vision_part_bytes(manifest)
    return {part: Demand(flops[part], sizes[part] if tiles else 0) for part in flops}


def layer_demands(
    manifest: Manifest,
    weights: Mapping[str, int],
    schedule: Schedule,
    tokens: int,
    past: Sequence[int] | None = None,
    sequences: int = 1,
) -> list[dict[str, Demand]]:
    """Of each layer in a call of the language model: a prompt, or with past rows of every layer one token more.

    Args:
        weights: bytes by part (`weights_bytes`).
        tokens: T of the prompt, visual tokens included.
        sequences: so many alike in one call, which read the weights once.
    Returns:
        The parts of ATTENTION_BLOCK, FEED_FORWARD_BLOCK and OTHERS.
    """
    info, policy = manifest.language_model, manifest.policy
    found = []
    for layer, flops in enumerate(count_layers(info, policy, schedule, tokens, past=past)):
        sizes = _read_weights(info, weights, layer)
        if layer in info.moe_layers:
            used = _experts_used(info, policy, schedule, layer, tokens, sequences)
            sizes[EXPERTS] = int(sizes[EXPERTS] * used / info.num_experts)
        sizes["attention"] = sequences * _read_caches(manifest, layer, 0 if past is None else past[layer])
        found.append(_demands(flops, sizes, sequences))
    return found


def head_demand(manifest: Manifest, weights: Mapping[str, int], sequences: int = 1) -> Demand:
    """Of the vocabulary's matrix, for the last row of each sequence."""
    return Demand(sequences * head_flops(manifest.language_model), weights[HEAD])


def _demands(flops: PrefillFlops, sizes: Mapping[str, int], sequences: int) -> dict[str, Demand]:
    names = (*ATTENTION_BLOCK, *FEED_FORWARD_BLOCK, *OTHERS)
    return {name: Demand(sequences * getattr(flops, name), sizes.get(name, 0)) for name in names}


def _read_weights(info: LanguageModelInfo, weights: Mapping[str, int], layer: int) -> dict[str, int]:
    """Bytes of a layer's matrices, of all of its experts."""
    moe = len(info.moe_layers)
    projections = weights["attention"] // info.layers
    if layer not in info.moe_layers:
        return {"projections": projections, "dense": weights["dense"] // (info.layers - moe)}
    return {"projections": projections} | {part: weights[part] // moe for part in ("router", EXPERTS, "shared_experts")}


def _read_caches(manifest: Manifest, layer: int, cached: int) -> int:
    """Bytes of the cached rows that a token of the layer attends to."""
    info = manifest.language_model
    row = math.prod(info.cache_shape) * len(info.cache_parts) * item_size(manifest.cache_dtype)
    if layer in info.sliding_layers and info.sliding_window is not None:
        cached = min(cached, info.sliding_window)
    return cached * row


def _experts_used(
    info: LanguageModelInfo, policy: Policy, schedule: Schedule, layer: int, tokens: int, sequences: int
) -> float:
    """Experts of a layer that the rows which reach its MoE block are expected to use."""
    before = [
        s for s, site in enumerate(policy.sites) if site.layer < layer or (site.layer, site.point) == (layer, "moe")
    ]
    visual = schedule.keep[before[-1]] if before and schedule.visual_tokens else schedule.visual_tokens
    visual_top_k = schedule.visual_top_k[info.moe_layers.index(layer)]
    missed = (1 - info.top_k / info.num_experts) ** (tokens - schedule.visual_tokens)
    missed *= (1 - visual_top_k / info.num_experts) ** visual
    return info.num_experts * (1 - missed**sequences)
