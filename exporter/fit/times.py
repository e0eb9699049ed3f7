# SPDX-License-Identifier: Apache-2.0
"""How fast a model can be on a machine at most: rooflines of vision, prefill and decoding at several retentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastmmoe.exporter.fit.plan import Fit, Machine
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.flops import RequestFlops, compare_prefill, vision_flops
from fastmmoe.runtime.cost.memory import cache_bytes, cache_capacities, layer_rows
from fastmmoe.runtime.cost.rates import rates_of, rates_of_cpu, shortest_numbers
from fastmmoe.runtime.cost.roofline import (
    Rates,
    Work,
    decode_work,
    flat_retention,
    prefill_work,
    vision_work,
)
from fastmmoe.runtime.method.schedule import Schedule


@dataclass(frozen=True)
class Row:
    """A request at one retention.

    Attributes:
        caches: bytes.
        prefill, decode: of the language model; a step of decoding follows the prompt.
    """

    request: RequestFlops
    caches: int
    prefill: Work
    decode: Work


@dataclass(frozen=True)
class Times:
    """Least times; flat: the retention below which the prefill takes no less."""

    rates: Rates
    vision: Work
    rows: tuple[Row, ...]
    flat: float


def find_rates(machine: Machine, weights: int, manifest: Manifest) -> Rates:
    """What the machine does in a second at most; a CPU's memory is measured for a moment.

    Args:
        weights: bytes.
        manifest: of the bundle that is planned.
    """
    if machine.device is not None:
        return rates_of(machine.device)
    return rates_of_cpu(weights, shortest_numbers(manifest))


def find_times(machine: Machine, found: Fit, retentions: Sequence[float], new_tokens: int) -> Times:
    """Rooflines of the greatest prompt that the plan is for, with the default method.

    Raises:
        InvalidRequest: a retention outside (0, 1].
    """
    manifest, limits, parts = found.manifest, found.limits, found.needs.weights
    rates = find_rates(machine, sum(parts.values()), manifest)
    tokens, visual, tiles = limits.max_tokens, limits.max_visual, limits.max_tiles
    info, policy = manifest.language_model, manifest.policy
    vision = vision_flops(manifest.vision, info.hidden_size, tiles)

    def request(retention: float) -> RequestFlops:
        return compare_prefill(info, policy, tokens=tokens, visual_tokens=visual, vision=vision, retention=retention)

    def prefill(schedule: Schedule) -> Work:
        return prefill_work(manifest, parts, rates, schedule, tokens)

    rows = []
    for retention in retentions:
        counted = request(retention)
        schedule = counted.schedule
        capacities = cache_capacities(manifest, schedule, tokens, new_tokens)
        step = decode_work(manifest, parts, rates, schedule.for_text(), layer_rows(manifest, schedule, tokens).tolist())
        rows.append(Row(counted, cache_bytes(manifest, capacities), prefill(schedule), step))
    flat = flat_retention(lambda retention: prefill(request(retention).schedule).ms)
    return Times(rates, vision_work(manifest, parts, rates, tiles), tuple(rows), flat)
