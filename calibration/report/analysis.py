# SPDX-License-Identifier: Apache-2.0
"""From right answers and times to the report's numbers, intervals, comparisons and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fastmmoe.calibration.measure.bootstrap import Bootstrap, Interval
from fastmmoe.calibration.report.latency import Latency
from fastmmoe.calibration.report.questions import Questions
from fastmmoe.calibration.report.results import Claim, Comparison, KindRow, Point, Verdict
from fastmmoe.calibration.report.settings import BASELINES, FULL, LABELS, PRUNING, REDUCTION, Planner, Setting
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import FASTMMOE
from fastmmoe.runtime.types import Array

CLAIMED_REDUCTION, CLAIMED_QUALITY, CLAIMED_BOUND = 0.55, 0.955, 0.945
"""The published headline, and the least lower bound with which it counts as kept."""
STRONG_PRUNING = 0.5
"""Retentions up to this one are compared at equal FLOPs."""
EQUALISED = (*BASELINES, PRUNING)
"""What fastmmoe is compared with at equal FLOPs."""


@dataclass(frozen=True)
class Pair:
    """A setting of fastmmoe and the one of another variant that costs the same; None and why, where there is none."""

    ours: Setting
    variant: str
    other: Setting | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """Settings that are to be measured.

    Attributes:
        claimed: the setting that saves CLAIMED_REDUCTION, or None and why in `unclaimed`.
    """

    settings: tuple[Setting, ...]
    claimed: Setting | None
    unclaimed: str
    pairs: tuple[Pair, ...]


def plan_settings(planner: Planner, curves: Sequence[Setting], others: Sequence[Setting] = ()) -> Plan:
    """The curves' settings, the claimed one, what costs as much as fastmmoe under strong pruning, and others."""
    claimed, unclaimed = None, ""
    try:
        claimed = planner.at_reduction(FASTMMOE, CLAIMED_REDUCTION)
    except InvalidRequest as error:
        unclaimed = str(error)
    strong = [s for s in curves if s.variant == FASTMMOE and s.retention <= STRONG_PRUNING]
    ours = list(dict.fromkeys([*([] if claimed is None else [claimed]), *strong]))
    pairs = [_pair(planner, setting, variant) for setting in ours for variant in EQUALISED]
    equal = [pair.other for pair in pairs if pair.other is not None]
    return Plan(tuple(dict.fromkeys([*curves, *ours, *equal, *others])), claimed, unclaimed, tuple(pairs))


def _pair(planner: Planner, ours: Setting, variant: str) -> Pair:
    try:
        return Pair(ours, variant, planner.at_reduction(variant, planner.cost(ours).reduction))
    except InvalidRequest as error:
        return Pair(ours, variant, None, str(error))


class Analysis:
    """Intervals and verdicts.

    Args:
        right: of every setting [questions] float64, right answers; those of the full model are not all zero.
    """

    def __init__(
        self, planner: Planner, questions: Questions, right: Mapping[Setting, Array], bootstrap: Bootstrap
    ) -> None:
        self._planner, self._questions, self._right, self._bootstrap = planner, questions, right, bootstrap
        self._full = right[Setting(FULL)]

    def points(self, settings: Sequence[Setting], latency: Latency) -> tuple[Point, ...]:
        """Every setting with its accuracy, cost and times."""
        right = np.stack([self._right[setting] for setting in settings], axis=1)
        accuracies = self._bootstrap.ratios(right, np.ones_like(right))
        qualities = self._bootstrap.ratios(right, np.repeat(self._full[:, None], len(settings), axis=1))
        points = [
            self._point(setting, accuracy, quality, latency)
            for setting, accuracy, quality in zip(settings, accuracies, qualities, strict=True)
        ]
        by_flops = front(points, lambda point: point.gflops)
        by_time = front(points, lambda point: point.prefill_share)
        return tuple(
            msgspec.structs.replace(p, on_flops_front=p.setting in by_flops, on_latency_front=p.setting in by_time)
            for p in points
        )

    def comparisons(self, pairs: Sequence[Pair]) -> tuple[Comparison, ...]:
        """fastmmoe against the others at equal FLOPs."""
        found = [(pair.ours, pair.other) for pair in pairs if pair.other is not None]
        if not found:
            return tuple(self._comparison(pair, None) for pair in pairs)
        differences = np.stack([self._right[ours] - self._right[other] for ours, other in found], axis=1)
        intervals = iter(self._bootstrap.ratios(differences, np.ones_like(differences)))
        return tuple(self._comparison(pair, None if pair.other is None else next(intervals)) for pair in pairs)

    def kinds(self, settings: Sequence[Setting]) -> tuple[KindRow, ...]:
        """Accuracy of some settings by kind of question, in the order of the kinds' names."""
        kind_of = np.array([question.sample.kind for question in self._questions.items])
        right = np.stack([self._right[setting] for setting in settings], axis=1)
        rows = []
        for kind in sorted(set(kind_of.tolist())):
            inside = np.repeat((kind_of == kind)[:, None], len(settings), axis=1).astype(np.float64)
            intervals = self._bootstrap.ratios(right * inside, inside)
            rows.append(KindRow(kind=kind, questions=int((kind_of == kind).sum()), accuracies=tuple(intervals)))
        return tuple(rows)

    def _point(self, setting: Setting, accuracy: Interval, quality: Interval, latency: Latency) -> Point:
        cost, times, full = self._planner.cost(setting), latency.of(setting), latency.of(Setting(FULL))
        return Point(
            setting=setting,
            options=self._planner.options(setting),
            kept=cost.kept,
            gflops=cost.gflops,
            reduction=cost.reduction,
            reduction_with_vision=cost.reduction_with_vision,
            accuracy=accuracy,
            quality=quality,
            prefill_ms=statistics.median(times.prefill_ms),
            prefill_share=_median_ratio(times.prefill_ms, full.prefill_ms),
            ttft_ms=statistics.median(times.ttft_ms),
            ttft_share=_median_ratio(times.ttft_ms, full.ttft_ms),
        )

    def _comparison(self, pair: Pair, difference: Interval | None) -> Comparison:
        other = pair.other
        return Comparison(
            ours=pair.ours,
            variant=pair.variant,
            other=other,
            ours_reduction=self._planner.cost(pair.ours).reduction,
            other_reduction=None if other is None else self._planner.cost(other).reduction,
            ours_accuracy=float(self._right[pair.ours].mean()),
            other_accuracy=None if other is None else float(self._right[other].mean()),
            difference=difference,
            verdict=_verdict(difference),
            why=pair.why,
        )


def _median_ratio(times: Sequence[float], full: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, full, strict=True))


def _verdict(difference: Interval | None) -> Verdict:
    if difference is None:
        return "out of reach"
    if difference.low > 0:
        return "above"
    return "below" if difference.high < 0 else "within the interval"


def front(points: Sequence[Point], cost: Callable[[Point], float]) -> set[Setting]:
    """Settings that no other one equals in accuracy and cost and beats in one of them."""
    found = set()
    for one in points:
        ours = (-one.accuracy.value, cost(one))
        others = [(-p.accuracy.value, cost(p)) for p in points]
        if not any(a <= ours[0] and c <= ours[1] and (a, c) != ours for a, c in others):
            found.add(one.setting)
    return found


@dataclass(frozen=True)
class Recommendation:
    """Result of `recommend`.

    Attributes:
        setting: None where no setting may be recommended.
        not_told_apart: a baseline that would save more, and that these questions do not tell from fastmmoe; None where
            there is none.
    """

    setting: Setting | None
    not_told_apart: Setting | None


def recommend(points: Sequence[Point], min_quality: float, comparisons: Sequence[Comparison]) -> Recommendation:
    """The setting of the greatest reduction whose lower bound of quality is at least min_quality.

    Of reductions equal to a tenth of a percent, which the equalised settings bring, the most accurate one. A baseline
    counts only where the questions tell it apart: fastmmoe at the same cost is below it. Few questions let any method
    pass by chance.
    """
    better = {row.other for row in comparisons if row.verdict == "below"}
    good = [point for point in points if point.quality.low >= min_quality]
    ranked = sorted(good, key=lambda point: (round(point.reduction, 3), point.quality.value), reverse=True)
    settings = [point.setting for point in ranked]
    is_fair = [setting.variant not in BASELINES or setting in better for setting in settings]
    first = is_fair.index(True) if True in is_fair else len(settings)
    return Recommendation(
        settings[first] if first < len(settings) else None,
        settings[0] if first > 0 else None,
    )


def state_claims(claimed: Point | None, unclaimed: str, comparisons: Sequence[Comparison]) -> tuple[Claim, ...]:
    """The two published statements, tested: the headline, and fastmmoe against the baselines at equal FLOPs."""
    headline = (
        f"FastMMoE saves at least {CLAIMED_REDUCTION:.1%} of the prefill FLOPs and keeps at least "
        f"{CLAIMED_QUALITY:.1%} of the full model's accuracy, lower bound at least {CLAIMED_BOUND:.1%}."
    )
    found, holds = unclaimed, False
    if claimed is not None:
        q = claimed.quality
        found = (
            f"At retention {claimed.setting.retention:g} it saves {claimed.reduction:.2%} and keeps {q.value:.2%} "
            f"(95% interval {q.low:.2%} to {q.high:.2%})."
        )
        holds = q.value >= CLAIMED_QUALITY and q.low >= CLAIMED_BOUND
    rows = [row for row in comparisons if row.variant in BASELINES]
    counts = {v: sum(row.verdict == v for row in rows) for v in ("above", "within the interval", "below")}
    below = "; ".join(f"{LABELS[r.variant]} at FastMMoE's {r.ours.retention:g}" for r in rows if r.verdict == "below")
    return (
        Claim(statement=headline, found=found, holds=holds),
        Claim(
            statement=(
                f"At equal FLOPs and every retention up to {STRONG_PRUNING:g}, FastMMoE is at or above FastV, "
                "SparseVLM and random pruning, within the 95% interval of the difference."
            ),
            found=f"Of {len(rows)} comparisons {counts['above']} are above, {counts['within the interval']} within the "
            f"interval, {counts['below']} below" + (f" ({below})." if below else "."),
            holds=bool(rows) and not below,
        ),
    )


def settings_by_kind(plan: Plan) -> tuple[Setting, ...]:
    """The full model and, at the cost of the claimed setting, everything else."""
    others = [pair.other for pair in plan.pairs if pair.ours == plan.claimed and pair.other is not None]
    ours = [] if plan.claimed is None else [plan.claimed]
    return tuple(dict.fromkeys([Setting(FULL), *ours, Setting(REDUCTION), *others]))
