# SPDX-License-Identifier: Apache-2.0
"""Token counts of a request: spec section 3 by hand and against 50-digit arithmetic."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from typing import Any

import pytest

from fastmmoe.runtime.errors import FastmmoeError, InvalidRequest
from fastmmoe.runtime.policy import Policy, Schedule, keep_counts, merge_count, plan_request, reduced_top_k

DEEPSEEK = Policy(
    method="fastmmoe",
    prune_layers=(2, 5, 8),
    retention=0.5,
    alpha=0.3,
    merge_ratio=0.05,
    window=3,
    merge="mlerp",
    reduction_start_layer=2,
    expert_factor=0.5,
    reduction_weights="preserve_sum",
)
NONE = Policy(
    method="none",
    prune_layers=(),
    retention=1.0,
    alpha=0.3,
    merge_ratio=0.05,
    window=3,
    merge="mlerp",
    reduction_start_layer=2,
    expert_factor=0.5,
    reduction_weights="preserve_sum",
)
MOE_LAYERS = tuple(range(1, 27))


def plan(policy: Policy = DEEPSEEK, visual_tokens: int = 1023, **request: Any) -> Schedule:
    return plan_request(policy, visual_tokens=visual_tokens, moe_layers=MOE_LAYERS, top_k=6, **request)


@pytest.mark.parametrize(
    ("V", "R", "stages", "expected"),
    [
        (1000, 0.125, 3, (500, 250, 125)),
        (1023, 0.5, 3, (811, 644, 511)),
        (1023, 1.0, 3, (1023, 1023, 1023)),
        (10, 0.5, 1, (5,)),
        (10, 0.5, 0, ()),
        (0, 0.5, 3, (0, 0, 0)),
        (0, 1.0, 2, (0, 0)),
        (1, 0.01, 3, (1, 1, 1)),
        (1, 1.0, 3, (1, 1, 1)),
        (2, 0.5, 3, (1, 1, 1)),
        (1000, 1e-300, 3, (1, 1, 1)),
        (1000, math.ulp(0.0), 2, (1, 1)),
        # 0.729 = 0.9^3, but float64 gives 0.729 ** (2 / 3) = 0.80999...: 809 without the allowance.
        (1000, 0.729, 3, (900, 810, 729)),
        (300, 0.729, 3, (270, 243, 218)),
    ],
)
def test_keep_counts(V: int, R: float, stages: int, expected: tuple[int, ...]) -> None:
    assert keep_counts(V, R, stages) == expected


def test_the_floor_trap_is_one() -> None:
    assert math.floor(1000 * 0.729 ** (2 / 3)) == 809
    assert math.floor(100 * 0.29) == 28


@pytest.mark.parametrize(
    "R", ["0.027", "0.1", "0.25", "0.343", "0.48", "0.5", "0.55", "0.729", "0.75", "0.91", "0.999"]
)
def test_keep_counts_equal_exact_arithmetic(R: str) -> None:
    with localcontext() as context:
        context.prec = 50
        for V, stages in itertools.product((1, 2, 3, 7, 100, 421, 1000, 1023, 1792, 2017, 3328), (1, 2, 3)):
            exact = [Decimal(V) * Decimal(R) ** (Decimal(s) / stages) for s in range(1, stages + 1)]
            expected = tuple(max(1, math.floor(x + Decimal("1e-12"))) for x in exact)
            assert keep_counts(V, float(R), stages) == expected


@pytest.mark.parametrize(
    ("V", "K", "ratio", "window", "expected"),
    [
        (1023, 811, 0.05, 3, 40),  # floor(40.55)
        (1000, 100, 0.29, 3, 29),  # float64 gives 28.999...
        (7, 1, 0.5, 3, 0),  # floor(0.5)
        (9, 8, 1.0, 3, 0),  # merging a window of 3 drops 2; only 1 goes
        (9, 7, 1.0, 3, 1),
        (9, 3, 1.0, 3, 2),  # ceil(9 / 3) - 1: one window stays whole
        (10, 4, 1.0, 3, 3),
        (100, 97, 0.9, 3, 1),
        (64, 64, 1.0, 3, 0),
        (30, 9, 0.5, 1, 0),
        (30, 9, 0.0, 3, 0),
        (1, 1, 1.0, 3, 0),
        (0, 0, 1.0, 3, 0),
    ],
)
def test_merge_count(V: int, K: int, ratio: float, window: int, expected: int) -> None:
    assert merge_count(V, K, ratio, window) == expected


def test_exactly_the_kept_tokens_can_survive() -> None:
    """Whatever windows are merged, V - M w tokens outside them must fill K - M places, and a window be left."""
    for V, ratio, window in itertools.product(range(1, 40), (0.025, 0.3, 1.0), (2, 3, 5)):
        for K in range(1, V + 1):
            M = merge_count(V, K, ratio, window)
            assert 0 <= M <= K * ratio + 1e-9
            assert M == 0 or (V - M * window >= K - M and math.ceil(V / window) > M)


@pytest.mark.parametrize(
    ("k", "factor", "expected"),
    [(6, 0.5, 3), (8, 0.5, 4), (4, 0.5, 2), (3, 0.5, 2), (1, 0.5, 1), (8, 0.01, 1), (8, 1.0, 8), (6, 0.75, 5)],
)
def test_reduced_top_k(k: int, factor: float, expected: int) -> None:
    assert reduced_top_k(k, factor) == expected


def test_retention_below_one_uses_the_stored_expert_factor() -> None:
    """Layer 1 lies before the first layer that reduces."""
    schedule = plan(retention=0.5)
    assert (schedule.keep, schedule.merge) == ((811, 644, 511), (40, 32, 25))
    assert schedule.visual_top_k == (6,) + (3,) * 25
    assert (schedule.retention, schedule.visual_tokens) == (0.5, 1023)


def test_retention_left_out_is_the_stored_one() -> None:
    assert plan() == plan(retention=0.5)


def test_retention_one_is_the_unmodified_model() -> None:
    schedule = plan(retention=1.0)
    assert schedule == Schedule(1.0, 1023, (1023,) * 3, (0,) * 3, (6,) * 26)
    assert plan(retention=1) == schedule


def test_retention_one_with_fewer_experts_is_reduction_alone() -> None:
    schedule = plan(retention=1.0, visual_top_k=2)
    assert (schedule.keep, schedule.merge) == ((1023,) * 3, (0,) * 3)
    assert schedule.visual_top_k == (6,) + (2,) * 25


def test_pruning_alone() -> None:
    assert plan(retention=0.25, visual_top_k=6).visual_top_k == (6,) * 26


@pytest.mark.parametrize(("V", "kept"), [(0, 0), (1, 1)])
def test_hardly_any_visual_tokens(V: int, kept: int) -> None:
    schedule = plan(visual_tokens=V, retention=0.01)
    assert (schedule.keep, schedule.merge) == ((kept,) * 3, (0,) * 3)


@pytest.mark.parametrize("retention", [0, 0.0, -0.5, 1.0000001, 2, math.nan, math.inf, -math.inf, "0.5"])
def test_retention_out_of_range(retention: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"retention {retention}: expected a number in \(0, 1\]"):
        plan(retention=retention)


@pytest.mark.parametrize("visual_top_k", [0, -1, 7])
def test_visual_top_k_out_of_range(visual_top_k: int) -> None:
    with pytest.raises(InvalidRequest, match=f"visual_top_k {visual_top_k}: expected 1 to 6"):
        plan(retention=1.0, visual_top_k=visual_top_k)


def test_a_bundle_without_the_method_only_answers_at_one() -> None:
    assert plan(NONE) == plan(NONE, retention=1.0) == Schedule(1.0, 1023, (), (), (6,) * 26)
    for request in ({"retention": 0.5}, {"visual_top_k": 6}):
        with pytest.raises(FastmmoeError, match="--method none: it only answers at retention 1"):
            plan(NONE, **request)
