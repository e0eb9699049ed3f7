# SPDX-License-Identifier: Apache-2.0
"""Token counts of a request by every method: the specification by hand and against 50-digit arithmetic."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from typing import Any

import pytest
from msgspec.structs import replace

from fastmmoe.runtime.errors import FastmmoeError, InvalidRequest
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import (
    Schedule,
    even_exponents,
    keep_counts,
    merge_count,
    plan_request,
    reduce_experts,
)
from tests.support.policies import DEEPSEEK, NO_METHOD

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
    assert keep_counts(V, R, even_exponents(stages)) == expected


def test_even_exponents_are_the_rule_of_the_specification() -> None:
    """R^(s/S), bit by bit."""
    for S in range(1, 49):
        assert even_exponents(S) == tuple(s / S for s in range(1, S + 1))
    assert even_exponents(0) == ()


@pytest.mark.parametrize(
    ("V", "R", "exponents", "expected"),
    [
        (1000, 0.25, (0.5, 1.0), (500, 250)),
        # Most of it late: 1000 / 16^(1/8), / 16^(1/4), / 16
        (1000, 0.0625, (0.125, 0.25, 1.0), (707, 500, 62)),
        (1000, 1.0, (0.1, 0.2, 1.0), (1000, 1000, 1000)),
        (3, 0.01, (0.01, 1.0), (2, 1)),
        (0, 0.5, (0.1, 1.0), (0, 0)),
    ],
)
def test_keep_counts_of_other_exponents(V: int, R: float, exponents: Any, expected: tuple[int, ...]) -> None:
    assert keep_counts(V, R, exponents) == expected


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
            assert keep_counts(V, float(R), even_exponents(stages)) == expected


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


def test_layers_before_the_third_keep_the_models_experts() -> None:
    assert reduce_experts((0, 1, 2, 5), 6, 3) == (6, 6, 3, 3)


def test_retention_below_one_uses_the_stored_experts() -> None:
    schedule = plan(retention=0.5)
    assert (schedule.keep, schedule.merge) == ((811, 644, 511), (40, 32, 25))
    assert schedule.visual_top_k == (6,) + (3,) * 25
    assert (schedule.retention, schedule.visual_tokens) == (0.5, 1023)


def test_retention_left_out_is_the_stored_one() -> None:
    assert plan() == plan(retention=0.5)


def test_retention_one_is_the_unmodified_model() -> None:
    schedule = plan(retention=1.0)
    assert schedule == Schedule("fastmmoe", 1.0, 1023, (1023,) * 3, (0,) * 3, (0,) * 3, (0, 1, 2), (6,) * 26)
    assert plan(retention=1) == schedule


def test_retention_one_with_fewer_experts_is_reduction_alone() -> None:
    schedule = plan(retention=1.0, visual_top_k=2)
    assert (schedule.keep, schedule.merge) == ((1023,) * 3, (0,) * 3)
    assert schedule.visual_top_k == (6,) + (2,) * 25


def test_experts_by_layer() -> None:
    """A calibrated bundle may reduce any layer; one number of a request leaves layer 1 to the model."""
    by_layer = tuple(1 + i % 6 for i in range(26))
    calibrated = replace(DEEPSEEK, visual_top_k=by_layer)
    assert plan(calibrated, retention=0.5).visual_top_k == by_layer
    assert plan(calibrated, retention=1.0).visual_top_k == (6,) * 26
    assert plan(calibrated, retention=0.5, visual_top_k=4).visual_top_k == (6,) + (4,) * 25
    assert plan(retention=1.0, visual_top_k=by_layer).visual_top_k == by_layer
    assert plan(retention=1.0, visual_top_k=list(by_layer)) == plan(retention=1.0, visual_top_k=by_layer)


def test_stages_of_other_exponents() -> None:
    """fastmmoe and random keep R^e_s, whatever R the request has; the others have counts of their own."""
    calibrated = replace(ALL, stage_exponents=(0.125, 0.25, 1.0))
    for method in ("fastmmoe", "random"):
        schedule = plan(calibrated, 1000, method=method, retention=0.0625)
        assert schedule.kept_visual_tokens == (707, 500, 62)
        assert plan(calibrated, 1000, method=method, retention=1.0).kept_visual_tokens == (1000,) * 3
    merged = plan(calibrated, 1000, retention=0.0625).merged_vectors
    assert merged == tuple(merge_count(v, k, 0.05, 3) for v, k in ((1000, 707), (707, 500), (500, 62)))
    for method in ("fastv", "sparsevlm"):
        assert plan(calibrated, method=method, retention=0.25) == plan(ALL, method=method, retention=0.25)


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


@pytest.mark.parametrize("visual_top_k", [0, -1, 7, 1.5, 2.0, True, math.nan])
def test_visual_top_k_out_of_range(visual_top_k: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"visual_top_k {visual_top_k}: expected 1 to 6"):
        plan(retention=1.0, visual_top_k=visual_top_k)
    with pytest.raises(InvalidRequest, match=f"visual_top_k {visual_top_k}: expected 1 to 6"):
        plan(retention=1.0, visual_top_k=(3,) * 25 + (visual_top_k,))


@pytest.mark.parametrize("count", [0, 1, 25, 27])
def test_experts_not_for_every_layer(count: int) -> None:
    message = f"visual_top_k has {count} numbers: expected one number, or 26, one for each MoE layer"
    with pytest.raises(InvalidRequest, match=message):
        plan(visual_top_k=(3,) * count)


def test_a_bundle_without_the_method_only_answers_at_one() -> None:
    assert plan(NO_METHOD) == plan(NO_METHOD, retention=1.0) == Schedule("none", 1.0, 1023, (), (), (), (), (6,) * 26)
    for request in ({"retention": 0.5}, {"visual_top_k": 6}):
        with pytest.raises(FastmmoeError, match="method none is the unmodified model: it takes retention 1 and no"):
            plan(NO_METHOD, **request)


ALL = replace(
    DEEPSEEK,
    method="all",
    prune_layers={"fastmmoe": (2, 5, 8), "random": (2, 5, 8), "fastv": (2,), "sparsevlm": (2, 5, 13)},
)


def test_only_the_sites_of_the_method_prune() -> None:
    assert plan(ALL, retention=0.5).keep == (1023, 811, 811, 644, 644, 511, 511)
    random = plan(ALL, method="random", retention=0.5)
    assert (random.keep, random.merge) == ((1023, 811, 811, 644, 644, 511, 511), (0,) * 7)
    assert random.kept_visual_tokens == (811, 644, 511)
    fastv = plan(ALL, method="fastv", retention=0.5)
    assert (fastv.keep, fastv.kept_visual_tokens, fastv.sites) == ((512,) * 7, (512,), (0,))
    none = plan(ALL, method="none")
    assert (none.keep, none.kept_visual_tokens, none.prunes) == ((1023,) * 7, (), False)


@pytest.mark.parametrize(
    ("V", "R", "kept"),
    # Halves go to the even number, as Python rounds; one token stays.
    [(1023, 0.5, 512), (1023, 0.25, 256), (5, 0.5, 2), (7, 0.5, 4), (9, 0.01, 1), (9, 1.0, 9), (0, 0.5, 0)],
)
def test_fastv_keeps_the_rounded_share(V: int, R: float, kept: int) -> None:
    assert plan(ALL, method="fastv", visual_tokens=V, retention=R).kept_visual_tokens == (kept,)


def test_sparsevlm_scales_its_list() -> None:
    """At its authors' V of 576 and last count of 110 the list is theirs; each stage adds its merged vectors."""
    schedule = plan(ALL, method="sparsevlm", visual_tokens=576, retention=110 / 576)
    kept = [schedule.keep[s] - schedule.merge[s] for s in schedule.sites]
    assert kept == [300, 200, 110]
    # int(0.3 (576 - 300)) + 1 = 83 tokens become int(83 / 10) + 1 = 9 vectors; then V is 309.
    assert [schedule.recycle[s] for s in schedule.sites] == [83, int(0.3 * 109) + 1, int(0.3 * (204 - 110)) + 1]
    assert schedule.merged_vectors == (9, 4, 3)
    assert schedule.kept_visual_tokens == (309, 204, 113)


@pytest.mark.parametrize(
    ("V", "R", "kept"),
    [
        # At most V - 1 are kept as they are; the one that is dropped is recycled as itself.
        (100, 0.9, (100, 100, 91)),
        (1, 0.5, (1, 1, 1)),
        (0, 0.5, (0, 0, 0)),
        (100, 1.0, (100, 100, 100)),
    ],
)
def test_sparsevlm_at_the_ends(V: int, R: float, kept: tuple[int, ...]) -> None:
    assert plan(ALL, method="sparsevlm", visual_tokens=V, retention=R).kept_visual_tokens == kept


@pytest.mark.parametrize("method", ["random", "fastv", "sparsevlm"])
def test_baselines_use_the_models_experts(method: str) -> None:
    """Only fastmmoe reduces them by itself; a request may for any method."""
    assert plan(ALL, method=method, retention=0.5).visual_top_k == (6,) * 26
    assert plan(ALL, method=method, retention=0.5, visual_top_k=3).visual_top_k == (6,) + (3,) * 25


def test_methods_that_are_not_there() -> None:
    with pytest.raises(InvalidRequest, match="method fastv: the bundle has none, fastmmoe; export with --method fastv"):
        plan(method="fastv", retention=0.5)
    with pytest.raises(InvalidRequest, match="method 'fastvv': expected one of none, fastmmoe"):
        plan(method="fastvv")


def test_text_has_nothing_to_prune() -> None:
    schedule = plan(ALL, method="sparsevlm", retention=0.5)
    text = schedule.for_text()
    assert schedule.prunes and not text.prunes
    assert (text.visual_tokens, text.keep, text.merge, text.recycle) == (0, (0,) * 7, (0,) * 7, (0,) * 7)
