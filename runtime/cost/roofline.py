# SPDX-License-Identifier: Apache-2.0
"""The least time of vision, prefill and a decode step: block by block the greater of computing and of reading weights.

Nothing is measured here. What no request can avoid is counted: matrix products, weights of the parts that are used,
rows of the caches. Norms, activations between blocks and launches come on top, so a time is a bound from below.
Routing is taken to be even and independent, as the kernel report does: E (1 - (1 - k / E)^T) experts of a layer are
read. A prompt that is routed to fewer reads less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastmmoe.runtime.backends.elements import item_size
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest
from fastmmoe.runtime.cost.budget import STEPS, greatest_step
from fastmmoe.runtime.cost.flops import count_layers, vision_flops
from fastmmoe.runtime.cost.weights import EXPERTS
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import Schedule

FLAT = 1.1
"""Times within this factor of the least one count as it."""


@dataclass(frozen=True)
class Rates:
    """Operations and bytes a second; source: where they are from."""

    flops: float
    bytes: float
    source: str


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of something that is done, and milliseconds of computing alone, of reading alone, of the greater.

    The last is summed over blocks, so it may exceed both of the others.
    """

    flops: int = 0
    bytes: int = 0
    compute_ms: float = 0.0
    memory_ms: float = 0.0
    ms: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.compute_ms + other.compute_ms,
            self.memory_ms + other.memory_ms,
            self.ms + other.ms,
        )


def block(rates: Rates, flops: int, size: int) -> Work:
    """One block that computes so much and reads so many bytes."""
    compute, memory = 1e3 * flops / rates.flops, 1e3 * size / rates.bytes
    return Work(flops, size, compute, memory, max(compute, memory))


def vision_work(manifest: Manifest, parts: Mapping[str, int], rates: Rates, tiles: int) -> Work:
    """The vision graph on so many tiles, in one call.

    Args:
        parts: bytes of the weights (`weights_bytes`).
    """
    flops = vision_flops(manifest.vision, manifest.language_model.hidden_size, tiles)
    return block(rates, flops, parts["vision"] if tiles else 0)


def prefill_work(
    manifest: Manifest,
    parts: Mapping[str, int],
    rates: Rates,
    schedule: Schedule,
    tokens: int,
    past: Sequence[int] | None = None,
    sequences: int = 1,
) -> Work:
    """A call of the language model: a prompt, or with past rows of every layer one token more.

    Args:
        parts: bytes of the weights (`weights_bytes`).
        tokens: T of the prompt, visual tokens included.
        sequences: so many alike in one call, which read the weights once.
    """
    info, policy = manifest.language_model, manifest.policy
    layers = count_layers(info, policy, schedule, tokens, past=past)
    dense_layers = max(info.layers - len(info.moe_layers), 1)
    row = math.prod(info.cache_shape) * len(info.cache_parts) * item_size(manifest.cache_dtype)
    total = Work()
    for layer, flops in enumerate(layers):
        cached = 0 if past is None else past[layer]
        if layer in info.sliding_layers and info.sliding_window is not None:
            cached = min(cached, info.sliding_window)
        size = parts["attention"] // info.layers + sequences * cached * row
        total += block(rates, sequences * (flops.projections + flops.attention), size)
        if layer not in info.moe_layers:
            total += block(rates, sequences * flops.dense, parts["dense"] // dense_layers)
            continue
        moe = len(info.moe_layers)
        used = _experts_used(info, policy, schedule, layer, tokens, sequences)
        size = (parts["router"] + parts["shared_experts"] + int(parts[EXPERTS] * used / info.num_experts)) // moe
        total += block(rates, sequences * (flops.router + flops.routed_experts + flops.shared_experts), size)
    return total + block(rates, sequences * 2 * info.hidden_size * info.vocab_size, parts["head"])


def decode_work(
    manifest: Manifest,
    parts: Mapping[str, int],
    rates: Rates,
    text: Schedule,
    rows: Sequence[int],
    sequences: int = 1,
) -> Work:
    """The step of one token of each sequence after so many cached rows of every layer.

    Args:
        text: the schedule of a request without visual tokens.
    """
    return prefill_work(manifest, parts, rates, text, 1, rows, sequences)


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


def flat_retention(time_at: Callable[[float], float]) -> float:
    """The greatest retention, in steps of 0.0001, whose time is within FLAT of the smallest retention's.

    Args:
        time_at: of a retention in (0, 1]; it never falls while the retention rises.
    """
    least = time_at(1 / STEPS)
    found = greatest_step(lambda step: time_at(step / STEPS) <= FLAT * least, STEPS + 1)
    assert found is not None
    return found / STEPS
