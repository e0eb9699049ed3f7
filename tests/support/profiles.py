# SPDX-License-Identifier: Apache-2.0
"""A profile that nothing was measured for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmmoe.runtime.backends.node_times import NodeTime
from fastmmoe.runtime.cost.demands import Demand
from fastmmoe.runtime.profiling.result import SCHEMA, Phase, Profile, Sample, make_phase

STEPS = [
    {
        "embedding": [NodeTime("embedding/Gather", "Gather", 0.5)],
        "language_model": [
            NodeTime("layers.0.self_attn.q_proj/MatMul", "MatMul", attention),
            NodeTime("layers.0.mlp.experts/FmmSparseMoE", "FmmSparseMoE", 6.0),
            NodeTime("layers.1.mlp.experts/FmmSparseMoE", "FmmSparseMoE", 2.0),
            NodeTime("unknown", "Cast", 0.25),
        ],
    }
    for attention in (1.0, 4.0, 1.5)
]
"""Three steps; the second has a slow projection."""


NOTHING: Mapping[str, Demand] = {}


def phase(
    name: str = "decode", least: dict[str, float] | None = None, demands: Mapping[str, Demand] = NOTHING
) -> Phase:
    """Of STEPS, each of which took 1.25 ms outside of its nodes, half a millisecond of it for the profiler."""
    samples = [Sample(nodes, 1.25 + sum(node.ms for call in nodes.values() for node in call)) for nodes in STEPS]
    return make_phase(name, samples, [11.0, 10.0, 30.0], demands, least)


def profile(*phases: Phase, **changes: Any) -> Profile:
    """On a processor of two cores."""
    given: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": {"device": "A <processor> & more", "provider": "cpu", "threads": 2},
        "bundle": {"model": "demo"},
        "settings": {
            "method": "fastmmoe",
            "retention": 0.5,
            "tiles": 5,
            "visual_tokens": 100,
            "kept_visual_tokens": (75, 50),
            "text_tokens": 12,
            "new_tokens": 4,
            "repetitions": 3,
        },
        "rates": {"flops": 2e11, "bytes": 2e10, "source": "a test"},
        "phases": phases,
    }
    return Profile(**given | changes)
