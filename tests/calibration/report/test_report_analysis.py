# SPDX-License-Identifier: Apache-2.0
"""Verdicts, claims, the Pareto front and the recommended setting, from answers whose outcome is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from fastmmoe.calibration.measure.bootstrap import Bootstrap, Interval
from fastmmoe.calibration.report.analysis import (
    Analysis,
    Pair,
    front,
    plan_settings,
    recommend,
    state_claims,
)
from fastmmoe.calibration.report.findings import describe
from fastmmoe.calibration.report.results import Point, Report
from fastmmoe.calibration.report.settings import BASELINES, FULL, Planner, Setting, curve_settings

OURS, OTHER = Setting("fastmmoe", 0.5), Setting("fastv", 0.4)


def analyse(planner: Planner, questions: Any, ours: np.ndarray, other: np.ndarray) -> Analysis:
    right = {Setting(FULL): np.ones(len(questions.items)), OURS: ours, OTHER: other}
    scenes = [question.picture for question in questions.items]
    return Analysis(planner, questions, right, Bootstrap(scenes, resamples=400, seed=0))


@pytest.mark.parametrize(
    ("ours_right", "other_right", "verdict"),
    [(0.95, 0.7, "above"), (0.7, 0.95, "below"), (0.8, 0.8, "within the interval")],
)
def test_verdict_follows_the_interval_of_the_difference(
    planner: Planner, questions: Any, ours_right: float, other_right: float, verdict: str
) -> None:
    rng = np.random.default_rng(0)
    ours, other = ((rng.random(600) < share).astype(np.float64) for share in (ours_right, other_right))
    (row,) = analyse(planner, questions, ours, other).comparisons([Pair(OURS, "fastv", OTHER)])
    assert row.verdict == verdict
    assert row.difference is not None
    assert row.difference.value == pytest.approx(ours.mean() - other.mean(), abs=1e-12)
    assert row.difference.low < row.difference.value < row.difference.high


def test_a_small_gain_is_within_the_interval(planner: Planner, questions: Any) -> None:
    ours, other = np.ones(600), np.ones(600)
    ours[[10, 200]] = 0
    other[[50, 300, 500]] = 0
    (row,) = analyse(planner, questions, ours, other).comparisons([Pair(OURS, "fastv", OTHER)])
    assert row.difference is not None
    assert row.difference.low < 0 < row.difference.value < row.difference.high
    assert row.verdict == "within the interval"


def test_a_pair_out_of_reach_is_told(planner: Planner, questions: Any) -> None:
    ones = np.ones(600)
    pairs = [Pair(OURS, "random", None, "no retention does"), Pair(OURS, "fastv", OTHER)]
    first, second = analyse(planner, questions, ones, ones).comparisons(pairs)
    assert (first.verdict, first.difference, first.why) == ("out of reach", None, "no retention does")
    assert (second.verdict, second.difference) == ("within the interval", Interval(0.0, 0.0, 0.0))


def test_kinds_are_counted_apart(planner: Planner, questions: Any) -> None:
    right = np.array([q.sample.kind != "cell" or q.picture % 4 == 0 for q in questions.items], np.float64)
    rows = {row.kind: row for row in analyse(planner, questions, right, right).kinds([Setting(FULL), OURS])}
    assert [row.questions for row in rows.values()] == [120] * 5
    assert rows["cell"].accuracies[0] == Interval(1.0, 1.0, 1.0)
    assert rows["cell"].accuracies[1].value == 0.25
    assert rows["color"].accuracies[1] == Interval(1.0, 1.0, 1.0)


def test_baselines_cost_no_more_than_what_they_are_compared_with(planner: Planner) -> None:
    plan = plan_settings(planner, curve_settings((0.7, 0.5, 0.2)))
    assert plan.claimed is not None
    assert planner.cost(plan.claimed).reduction >= 0.55
    assert {pair.ours for pair in plan.pairs} == {plan.claimed, Setting("fastmmoe", 0.5), Setting("fastmmoe", 0.2)}
    for pair in plan.pairs:
        assert pair.other is not None
        assert pair.other in plan.settings
        assert 0 <= planner.cost(pair.other).reduction - planner.cost(pair.ours).reduction < 0.02
    assert len(plan.pairs) == 3 * (len(BASELINES) + 1)


def test_claims_hold_where_they_do(good_report: Report) -> None:
    assert [claim.holds for claim in good_report.claims] == [True, True]
    assert "0 below." in good_report.claims[1].found


def test_claims_fail_where_they_do(bad_report: Report) -> None:
    assert [claim.holds for claim in bad_report.claims] == [False, False]
    assert "FastV at FastMMoE's 0.5" in bad_report.claims[1].found


def test_a_bound_below_is_enough_to_fail(good_report: Report) -> None:
    assert good_report.claimed is not None
    claimed = good_report.point(good_report.claimed)
    weak = msgspec.structs.replace(claimed, quality=Interval(0.97, 0.944, 0.99))
    assert [c.holds for c in state_claims(weak, "", good_report.comparisons)] == [False, True]


def test_an_unreachable_reduction_is_told(good_report: Report) -> None:
    claim, _ = state_claims(None, "no retention saves it", good_report.comparisons)
    assert (claim.found, claim.holds) == ("no retention saves it", False)


def test_points_know_their_front(good_report: Report) -> None:
    for point in good_report.points:
        better = [
            p
            for p in good_report.points
            if p.accuracy.value >= point.accuracy.value
            and p.gflops <= point.gflops
            and (p.accuracy.value, p.gflops) != (point.accuracy.value, point.gflops)
        ]
        assert point.on_flops_front == (not better)
    assert good_report.point(Setting(FULL)).on_flops_front
    assert any(p.on_latency_front for p in good_report.points)


def test_equal_points_share_the_front(good_report: Report) -> None:
    point = good_report.points[0]
    twin = msgspec.structs.replace(point, setting=Setting("fastv", 0.123))
    assert front([point, twin], lambda p: p.gflops) == {point.setting, twin.setting}


def test_recommended_saves_most_of_what_is_sure(make_report: Callable[..., Report]) -> None:
    report = make_report({"fastmmoe": 0.1, "pruning": 0.3, "random": 0.4, "fastv": 0.4, "sparsevlm": 0.4})
    assert report.recommended is not None
    chosen = report.point(report.recommended)
    assert chosen.quality.low >= 0.955
    assert all(p.quality.low < 0.955 for p in report.points if p.reduction > chosen.reduction + 1e-3)
    assert recommend(report.points, 1.01, report.comparisons).setting is None
    unsure = msgspec.structs.replace(chosen, quality=Interval(0.99, 0.95, 1.0), reduction=0.9)
    assert recommend([chosen, unsure], 0.955, ()).setting == chosen.setting
    assert recommend([unsure], 0.955, ()).setting is None


def test_of_equal_savings_the_most_accurate_is_recommended(good_report: Report) -> None:
    points = [p for p in good_report.points if p.quality.low >= 0.955][:3]
    qualities = (Interval(0.97, 0.96, 0.98), Interval(0.98, 0.97, 0.99), Interval(0.99, 0.98, 1.0))
    reductions = (0.6503, 0.6499, 0.649)
    points = [
        msgspec.structs.replace(p, quality=quality, reduction=reduction)
        for p, quality, reduction in zip(points, qualities, reductions, strict=True)
    ]
    assert recommend(points, 0.955, ()).setting == points[1].setting


def test_a_baseline_is_recommended_only_where_it_is_told_apart(good_report: Report) -> None:
    """It saves more and passes; whether the questions show it to be better at equal cost decides."""
    sure = Interval(0.99, 0.98, 1.0)
    row = next(row for row in good_report.comparisons if row.variant == "random" and row.other is not None)
    assert row.other is not None
    ours = msgspec.structs.replace(good_report.point(row.ours), quality=sure, reduction=0.4)
    random = msgspec.structs.replace(good_report.point(row.other), quality=sure, reduction=0.5)
    for verdict, setting, not_told_apart in (
        ("within the interval", ours.setting, random.setting),
        ("above", ours.setting, random.setting),
        ("below", random.setting, None),
    ):
        compared = [msgspec.structs.replace(row, verdict=verdict)]
        found = recommend([ours, random], 0.955, compared)
        assert (found.setting, found.not_told_apart) == (setting, not_told_apart)
    alone = recommend([random], 0.955, ())
    assert (alone.setting, alone.not_told_apart) == (None, random.setting)


def test_the_heading_says_that_the_questions_do_not_tell_the_methods_apart(good_report: Report) -> None:
    report = msgspec.structs.replace(good_report, not_told_apart=Setting("random", 0.3))
    words = f"{report.origin.questions:,} questions do not tell FastMMoE from random"
    assert describe(report).recommended.startswith("Recommended: FastMMoE at retention ")
    assert describe(report).recommended.endswith(f"; {words}")
    assert describe(msgspec.structs.replace(report, recommended=None)).recommended == words


def test_quality_of_the_full_model_is_exact(good_report: Report) -> None:
    full: Point = good_report.point(Setting(FULL))
    assert full.quality == Interval(1.0, 1.0, 1.0)
    assert (full.reduction, full.prefill_share, full.options) == (0.0, 1.0, {"method": "none"})
