# SPDX-License-Identifier: Apache-2.0
"""The least time of vision, prefill and a decode step: block by block the greater of computing and of reading weights.

Nothing is measured here. What no request can avoid is counted (demands.py): matrix products, weights of the parts that
are used, rows of the caches. Norms, activations between blocks and launches come on top: a time is a bound from below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.budget import STEPS, greatest_step
from fastmmoe.runtime.cost.demands import (
    ATTENTION_BLOCK,
    FEED_FORWARD_BLOCK,
    Demand,
    head_demand,
    layer_demands,
    sum_of,
)
from fastmmoe.runtime.cost.flops import vision_flops
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


def block(rates: Rates, demand: Demand) -> Work:
    """One block that computes and reads so much."""
    compute, memory = 1e3 * demand.flops / rates.flops, 1e3 * demand.bytes / rates.bytes
    return Work(demand.flops, demand.bytes, compute, memory, max(compute, memory))


def vision_work(manifest: Manifest, parts: Mapping[str, int], rates: Rates, tiles: int) -> Work:
    """The vision graph on so many tiles, in one call.

    Args:
        parts: bytes of the weights (`weights_bytes`).
    """
    flops = vision_flops(manifest.vision, manifest.language_model.hidden_size, tiles)
    return block(rates, Demand(flops, parts["vision"] if tiles else 0))


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
    total = block(rates, head_demand(manifest, parts, sequences))
    for of_layer in layer_demands(manifest, parts, schedule, tokens, past, sequences):
        for names in (ATTENTION_BLOCK, FEED_FORWARD_BLOCK):
            total += block(rates, sum_of(of_layer[name] for name in names))
    return total


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


def flat_retention(time_at: Callable[[float], float]) -> float:
    """The greatest retention, in steps of 0.0001, whose time is within FLAT of the smallest retention's.

    Args:
        time_at: of a retention in (0, 1]; it never falls while the retention rises.
    """
    least = time_at(1 / STEPS)
    found = greatest_step(lambda step: time_at(step / STEPS) <= FLAT * least, STEPS + 1)
    assert found is not None
    return found / STEPS
