# SPDX-License-Identifier: Apache-2.0
"""What fastmmoe profile found: docs/profile.md has every key of its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from fastmmoe.runtime.backends.node_times import Call, by_node
from fastmmoe.runtime.cost.demands import Demand
from fastmmoe.runtime.profiling.parts import TITLES, part_of

SCHEMA = "fastmmoe-profile/1"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node: operator is "" where it is not told, ms the median of its calls, share that of all nodes of the phase."""

    name: str
    operator: str
    part: str
    ms: float
    share: float


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes of a part.

    Attributes:
        part: key of `TITLES`.
        ms: sum of its nodes' medians.
        share: of the phase, what is outside of nodes included.
        flops, bytes: what it demands; None where nothing is counted.
        least_ms: what the machine needs for that; None also where its rates are not known.
        roofline_share: least_ms over ms; None where either is nothing.
    """

    part: str
    ms: float
    share: float
    nodes: int
    flops: int | None
    bytes: int | None
    least_ms: float | None
    roofline_share: float | None


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """Vision, the prefill, or a decode step.

    Attributes:
        calls: how many were profiled.
        nodes_ms: the sum over parts, which is the sum over nodes.
        outside_ms: what a call takes outside of its nodes: Python, the runtime between nodes, launches. A median, less
            what the profiler costs.
        total_ms: the two together: about unprofiled_ms, where nothing else ran.
        unprofiled_ms, profiled_ms: medians of calls without and with a profiler.
        overhead: the second over the first, minus 1.
    """

    phase: str
    calls: int
    nodes_ms: float
    outside_ms: float
    outside_share: float
    total_ms: float
    unprofiled_ms: float
    profiled_ms: float
    overhead: float
    parts: tuple[Part, ...]
    nodes: tuple[Node, ...]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole; machine, bundle and rates as in the results of fastmmoe bench."""

    schema: str
    machine: dict[str, Any]
    bundle: dict[str, Any]
    settings: dict[str, Any]
    rates: dict[str, Any] | None
    phases: tuple[Phase, ...]
    notes: tuple[str, ...] = ()


class Sample(msgspec.Struct, frozen=True):
    """One profiled call of a phase: the nodes of its graphs, by graph, and the milliseconds that it took in all."""

    nodes: Mapping[str, Call]
    ms: float


def make_phase(
    name: str,
    samples: Sequence[Sample],
    unprofiled: Sequence[float],
    demands: Mapping[str, Demand],
    least: Mapping[str, float] | None,
) -> Phase:
    """A phase of what was measured.

    Args:
        unprofiled: milliseconds of calls without a profiler.
        demands: of a call, by part.
        least: milliseconds of a call by part; None = rates are not known.
    """
    nodes = []
    for graph in samples[0].nodes:
        times = by_node([sample.nodes[graph] for sample in samples])
        nodes += [(one.name, one.operator, part_of(graph, one.name), median(one.ms)) for one in times]
    nodes_ms = sum(ms for *_, ms in nodes)
    profiled_ms, unprofiled_ms = median(sample.ms for sample in samples), median(unprofiled)
    beyond = median(s.ms - sum(node.ms for call in s.nodes.values() for node in call) for s in samples)
    outside_ms = max(0.0, beyond - max(0.0, profiled_ms - unprofiled_ms))
    total_ms = nodes_ms + outside_ms
    parts = []
    for part in TITLES:
        own = [ms for *_, of, ms in nodes if of == part]
        demand = demands.get(part, Demand())
        if own or demand != Demand():
            parts.append(_part(part, own, total_ms, demand, None if least is None else least.get(part)))
    return Phase(
        phase=name,
        calls=len(samples),
        nodes_ms=nodes_ms,
        outside_ms=outside_ms,
        outside_share=_share(outside_ms, total_ms),
        total_ms=total_ms,
        unprofiled_ms=unprofiled_ms,
        profiled_ms=profiled_ms,
        overhead=profiled_ms / unprofiled_ms - 1,
        parts=tuple(parts),
        nodes=tuple(
            Node(name=name, operator=operator, part=part, ms=ms, share=_share(ms, nodes_ms))
            for name, operator, part, ms in sorted(nodes, key=lambda node: -node[3])
        ),
    )


def _part(part: str, own: Sequence[float], total_ms: float, demand: Demand, least_ms: float | None) -> Part:
    ms = sum(own)
    is_counted = demand != Demand()
    least_ms = least_ms if is_counted else None
    return Part(
        part=part,
        ms=ms,
        share=_share(ms, total_ms),
        nodes=len(own),
        flops=demand.flops if is_counted else None,
        bytes=demand.bytes if is_counted else None,
        least_ms=least_ms,
        roofline_share=least_ms / ms if least_ms is not None and ms else None,
    )


def _share(ms: float, of: float) -> float:
    return ms / of if of else 0.0
