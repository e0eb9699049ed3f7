# SPDX-License-Identifier: Apache-2.0
"""From the points that were compared to the one that meets the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastmmoe.calibration.evaluate import Outcomes
from fastmmoe.calibration.options import CalibrationFailed, Goal
from fastmmoe.exporter.pruning.settings import PolicyOptions


@dataclass(frozen=True)
class Candidate:
    """Settings that were evaluated on all calibration questions.

    Attributes:
        name: "trial 12" or "default at 0.5".
        cost: FLOPs of the mean prompt as a share of the full model's.
    """

    name: str
    options: PolicyOptions
    cost: float
    outcomes: Outcomes


def candidates_for(
    goal: Goal,
    value: float,
    candidates: Sequence[Candidate],
    full: Outcomes,
    predict_ms: Callable[[float], float] | None = None,
) -> list[Candidate]:
    """The candidates that meet the goal, best first.

    Args:
        full: outcomes of the unmodified model on the same questions.
        predict_ms: time to the first token from a cost; needed for max_ttft_ms.
    Raises:
        CalibrationFailed: none does, with what comes nearest.
    """
    if goal == "flops_reduction":
        fitting = [c for c in candidates if 1 - c.cost >= value]
        nearest = f"the most that was found saves {max(1 - c.cost for c in candidates):.1%} of the prefill"
    elif goal == "min_quality":
        fitting = [c for c in candidates if c.outcomes.quality >= value * full.quality]
        best = max(c.outcomes.quality for c in candidates)
        nearest = f"the best that was found keeps {best / full.quality:.1%} of the full model's quality"
    else:
        assert predict_ms is not None
        fitting = [c for c in candidates if predict_ms(c.cost) <= value]
        nearest = f"the fastest that was found is predicted at {min(predict_ms(c.cost) for c in candidates):.1f} ms"
    if not fitting:
        option = f"--{goal.replace('_', '-')}"
        raise CalibrationFailed(f"nothing meets {option} {value:g}: {nearest}; give more --trials or another goal")
    if goal == "min_quality":
        return sorted(fitting, key=lambda c: (c.cost, -c.outcomes.score))
    return sorted(fitting, key=lambda c: (-c.outcomes.score, c.cost))
