# SPDX-License-Identifier: Apache-2.0
"""The planner against a search through every retention."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.cost import budget
from fastmmoe.runtime.cost.budget import STEPS, Target, greatest_step, plan_retention
from fastmmoe.runtime.cost.flops import RequestFlops, compare_prefill
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import Policy

INFO = LanguageModelInfo(
    hidden_size=8,
    vocab_size=10,
    layers=6,
    heads=2,
    kv_heads=1,
    query_key_dim=4,
    value_dim=4,
    kv_lora_rank=0,
    rope_dim=4,
    cache_parts=("key", "value"),
    cache_shape=(1, 4),
    moe_layers=(1, 2, 3, 4, 5),
    num_experts=4,
    top_k=2,
    moe_intermediate_size=16,
    shared_intermediate_size=0,
    dense_intermediate_size=20,
    sliding_layers=(),
    sliding_window=None,
)
POLICY = Policy(
    method="all",
    prune_layers={"fastmmoe": (1, 2, 3), "random": (1, 2, 3), "fastv": (2,), "sparsevlm": (1, 2, 3)},
    stage_exponents=(1 / 3, 2 / 3, 1.0),
    retention=0.5,
    alpha=0.5,
    merge_ratio=0.05,
    window=3,
    merge="mlerp",
    visual_top_k=(2, 1, 1, 1, 1),
    reduction_weights="preserve_sum",
    sparsevlm_positions="compact",
)
NO_METHOD = msgspec.structs.replace(POLICY, method="none", prune_layers={})
METHODS = ("fastmmoe", "random", "fastv", "sparsevlm")
TEXT = 8
COARSE = 600
"""Steps of a search through every retention; all STEPS of them would take minutes."""


def count(method: str, visual_tokens: int, retention: float) -> RequestFlops:
    tokens = TEXT + visual_tokens
    return compare_prefill(INFO, POLICY, tokens=tokens, visual_tokens=visual_tokens, method=method, retention=retention)


def plan(target: Target, method: str | None, visual_tokens: int, policy: Policy = POLICY) -> RequestFlops:
    tokens = TEXT + visual_tokens
    return plan_retention(INFO, policy, target, tokens=tokens, visual_tokens=visual_tokens, method=method)


@pytest.mark.parametrize("visual_tokens", [1, 2, 7, 60])
@pytest.mark.parametrize("method", METHODS)
def test_the_greatest_retention_of_all(method: str, visual_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs and tokens kept rise with the retention, and the planner finds what going through all of them finds."""
    monkeypatch.setattr(budget, "STEPS", COARSE)
    requests = [count(method, visual_tokens, step / COARSE) for step in range(1, COARSE + 1)]
    totals, kept = [r.prefill.total for r in requests], [r.kept for r in requests]
    assert totals == sorted(totals)
    assert kept == sorted(kept)
    least = requests[0].reduction
    for reduction in (0.0, least / 3, least / 2, least):
        found = plan(Target(flops_reduction=reduction), method, visual_tokens)
        assert found.schedule.retention == max(r.schedule.retention for r in requests if r.reduction >= reduction)
    for total in {totals[0], totals[COARSE // 2], totals[-1]}:
        found = plan(Target(max_gflops=total / 1e9), method, visual_tokens)
        assert found.schedule.retention == max(r.schedule.retention for r in requests if r.prefill.total <= total)
    for most in {kept[0], kept[COARSE // 2], kept[-1]}:
        found = plan(Target(max_tokens_kept=most), method, visual_tokens)
        assert found.schedule.retention == max(r.schedule.retention for r in requests if r.kept <= most)


def test_nothing_to_save_is_the_unmodified_model() -> None:
    request = plan(Target(flops_reduction=0.0), "fastmmoe", 60)
    assert request.schedule.retention == 1
    assert request.prefill.total == request.unmodified.total


def test_pruning_alone_needs_a_smaller_retention() -> None:
    """visual_top_k reaches the counter: with all the experts more tokens have to go."""
    target = Target(flops_reduction=0.3)
    both = plan_retention(INFO, POLICY, target, tokens=68, visual_tokens=60)
    alone = plan_retention(INFO, POLICY, target, tokens=68, visual_tokens=60, visual_top_k=2)
    assert both.schedule.method == alone.schedule.method == "fastmmoe"
    assert alone.schedule.retention < both.schedule.retention


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(), "0 targets: expected one of flops_reduction, max_gflops and max_tokens_kept"),
        (Target(flops_reduction=0.5, max_gflops=1.0), "2 targets: expected one"),
        (Target(flops_reduction=1.0), "flops_reduction 1.0: expected a number in [0, 1)"),
        (Target(flops_reduction=math.nan), "flops_reduction nan: expected"),
        (Target(max_gflops=0.0), "max_gflops 0.0: expected a positive number"),
        (Target(max_gflops=math.inf), "max_gflops inf: expected a positive number"),
        (Target(max_tokens_kept=0), "max_tokens_kept 0: expected at least 1"),
    ],
)
def test_targets_outside_their_range(target: Target, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        plan(target, "fastmmoe", 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", 60), "method none prunes nothing: expected one that does (fastmmoe, random, fastv, sparsevlm)"),
        (("fastmmoe", 0), "the prompt has no visual tokens"),
        (("none", 60, NO_METHOD), "expected one that does (there is none in this bundle)"),
        ((None, 60, NO_METHOD), "method none prunes nothing"),
        (("fastv", 60, NO_METHOD), "method fastv: the bundle has none"),
    ],
)
def test_what_cannot_be_planned(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        plan(Target(flops_reduction=0.3), *arguments)


def test_out_of_reach_by_how_much() -> None:
    """What the smallest retention reaches, in the target's own unit."""
    smallest = count("fastv", 60, 1 / STEPS)
    start = "no retention meets the target: method fastv at 0.0001, the smallest (1 of 60 visual tokens kept), "
    with pytest.raises(InvalidRequest) as refusal:
        plan(Target(flops_reduction=smallest.reduction + 0.02), "fastv", 60)
    assert str(refusal.value) == f"{start}saves {smallest.reduction:.2%} of the prefill, 2.00 points too few"
    gflops = smallest.prefill.total / 1e9
    with pytest.raises(InvalidRequest) as refusal:
        plan(Target(max_gflops=gflops * 0.75), "fastv", 60)
    assert str(refusal.value) == f"{start}needs {gflops:.6g} GFLOPs, {gflops * 0.25:.4g} too many"


def test_more_tokens_than_allowed() -> None:
    """SparseVLM's first stage leaves one merged vector at the least, beside the tokens kept."""
    smallest = count("sparsevlm", 60, 1 / STEPS).kept
    assert smallest > 1
    with pytest.raises(InvalidRequest, match=rf"keeps {smallest - 1} too many$"):
        plan(Target(max_tokens_kept=1), "sparsevlm", 60)


@pytest.mark.parametrize("greatest", [1, 2, 37, STEPS - 1, STEPS])
def test_bisection_finds_the_greatest_step(greatest: int) -> None:
    asked: list[int] = []

    def reaches(step: int) -> bool:
        asked.append(step)
        return step <= greatest

    assert greatest_step(reaches, STEPS + 1) == greatest
    assert len(asked) <= 1 + math.ceil(math.log2(STEPS)) and max(asked) <= STEPS
    assert greatest_step(lambda _: False, STEPS + 1) is None


def test_what_is_found_is_a_multiple_of_a_step_and_the_next_is_too_much() -> None:
    found = plan(Target(max_tokens_kept=30), "fastv", 61)
    step = round(found.schedule.retention * STEPS)
    assert found.schedule.retention == step / STEPS
    assert (found.kept, count("fastv", 61, (step + 1) / STEPS).kept) == (30, 31)
