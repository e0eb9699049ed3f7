# SPDX-License-Identifier: Apache-2.0
"""Phases of made-up samples: medians of nodes, and sums that add up."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.backends.node_times import NodeTime
from fastmmoe.runtime.cost.demands import Demand
from fastmmoe.runtime.profiling.result import Sample, make_phase
from tests.support.profiles import phase


def test_parts_are_sums_of_medians_and_add_up_to_all_nodes() -> None:
    """The slow projection of one step of three does not show; the overhead is that of medians, 11.5 over 11."""
    found = phase()
    assert {part.part: (part.ms, part.nodes) for part in found.parts} == {
        "embedding": (0.5, 1),
        "projections": (1.5, 1),
        "routed_experts": (8.0, 2),
        "rest": (0.25, 1),
    }
    assert sum(part.ms for part in found.parts) == found.nodes_ms == sum(node.ms for node in found.nodes) == 10.25
    assert (found.calls, found.outside_ms, found.total_ms) == (3, 0.75, 11.0)
    assert (found.unprofiled_ms, found.profiled_ms) == (11.0, 11.5)
    assert sum(part.share for part in found.parts) + found.outside_share == pytest.approx(1)
    assert found.overhead == pytest.approx(11.5 / 11 - 1)


def test_the_slowest_node_comes_first() -> None:
    nodes = phase().nodes
    assert [node.ms for node in nodes] == [6.0, 2.0, 1.5, 0.5, 0.25]
    assert (nodes[0].name, nodes[0].operator, nodes[0].part) == (
        "layers.0.mlp.experts/FmmSparseMoE",
        "FmmSparseMoE",
        "routed_experts",
    )
    assert sum(node.share for node in nodes) == pytest.approx(1)


def test_a_part_stands_beside_its_least_time() -> None:
    """What is demanded and did not show up has a row, too; what is not counted has no roofline."""
    given = {"routed_experts": Demand(4, 8), "head": Demand(0, 2)}
    found = {part.part: part for part in phase(least={"routed_experts": 2.0, "head": 1.0}, demands=given).parts}
    experts, head, rest = found["routed_experts"], found["head"], found["rest"]
    assert (experts.flops, experts.bytes, experts.least_ms, experts.roofline_share) == (4, 8, 2.0, 0.25)
    assert (head.ms, head.nodes, head.least_ms, head.roofline_share) == (0, 0, 1.0, None)
    assert (rest.flops, rest.bytes, rest.least_ms, rest.roofline_share) == (None, None, None, None)


def test_without_rates_there_is_no_roofline() -> None:
    (experts,) = (p for p in phase(demands={"routed_experts": Demand(4, 8)}).parts if p.part == "routed_experts")
    assert (experts.flops, experts.least_ms, experts.roofline_share) == (4, None, None)


def test_a_profiler_that_costs_more_than_there_is_leaves_nothing() -> None:
    samples = [Sample({"language_model": [NodeTime("head/ArgMax", "ArgMax", 1.0)]}, 6.0)]
    found = make_phase("decode", samples, [0.5], {}, None)
    assert (found.nodes_ms, found.outside_ms, found.total_ms, found.overhead) == (1.0, 0.0, 1.0, 11.0)


def test_a_node_that_did_not_run_in_every_call_counts_by_its_median() -> None:
    calls = [[NodeTime("layers.0/If", "If", ms)] if ms else [] for ms in (4.0, 0.0, 0.0)]
    found = make_phase("prefill", [Sample({"language_model": call}, 5.0) for call in calls], [5.0], {}, None)
    assert (found.nodes_ms, found.outside_ms, found.total_ms) == (0.0, 5.0, 5.0)
