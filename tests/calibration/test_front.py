# SPDX-License-Identifier: Apache-2.0
"""The front of points, the choice from it, and intervals of qualities."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.calibration.choose import Candidate, candidates_for
from fastmmoe.calibration.evaluate import Kind, Outcomes
from fastmmoe.calibration.front import first_fronts, front, gain_interval, quality_interval
from fastmmoe.calibration.measure.bootstrap import Bootstrap
from fastmmoe.calibration.options import CalibrationFailed
from fastmmoe.exporter.pruning.settings import PolicyOptions

# (quality, cost)
POINTS = [(0.9, 0.5), (0.8, 0.4), (0.9, 0.6), (0.7, 0.45), (0.95, 0.9), (0.9, 0.5), (0.2, 0.4)]


def make_outcomes(values: list[float], kind: Kind = "accuracy") -> Outcomes:
    return Outcomes(kind, np.array(values, np.float64), np.zeros(len(values)), np.zeros(len(values), np.int64))


def make_candidate(name: str, right: int, cost: float) -> Candidate:
    return Candidate(name, PolicyOptions(), cost, make_outcomes([1.0] * right + [0.0] * (10 - right)))


CANDIDATES = [make_candidate("a", 9, 0.6), make_candidate("b", 8, 0.44), make_candidate("c", 8, 0.4)]


def test_front_is_what_nothing_beats() -> None:
    assert front(POINTS) == [1, 0, 4]
    assert first_fronts(POINTS, 2) == [0, 1, 4, 3, 5, 6]
    assert front([]) == []


@pytest.mark.parametrize(
    ("goal", "value", "expected"),
    [
        ("flops_reduction", 0.4, ["a", "c", "b"]),
        ("flops_reduction", 0.5, ["c", "b"]),
        ("min_quality", 0.9, ["a"]),
        ("min_quality", 0.8, ["c", "b", "a"]),
        ("max_ttft_ms", 45, ["c", "b"]),
    ],
)
def test_what_meets_a_goal(goal: str, value: float, expected: list[str]) -> None:
    full = make_outcomes([1.0] * 10)
    found = candidates_for(goal, value, CANDIDATES, full, lambda cost: 100 * cost)  # type: ignore[arg-type]
    assert [c.name for c in found] == expected


@pytest.mark.parametrize(
    ("goal", "value", "message"),
    [
        ("flops_reduction", 0.7, "nothing meets --flops-reduction 0.7: the most that was found saves 60.0%"),
        ("min_quality", 0.95, "nothing meets --min-quality 0.95: the best that was found keeps 90.0%"),
        ("max_ttft_ms", 5, "nothing meets --max-ttft-ms 5: the fastest that was found is predicted at 40.0 ms"),
    ],
)
def test_a_goal_that_nothing_meets(goal: str, value: float, message: str) -> None:
    with pytest.raises(CalibrationFailed) as raised:
        candidates_for(goal, value, CANDIDATES, make_outcomes([1.0] * 10), lambda cost: 100 * cost)  # type: ignore[arg-type]
    assert str(raised.value).startswith(message)


def test_intervals() -> None:
    scenes = np.repeat(np.arange(50), 4)
    bootstrap = Bootstrap(scenes, resamples=2000, seed=0)
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(200) < 0.9, rng.random(200) < 0.6
    better, worse = make_outcomes(ours.tolist()), make_outcomes(theirs.tolist())
    found = quality_interval(better, bootstrap)
    assert found.low < found.value == ours.mean() < found.high
    assert found.high - found.low == pytest.approx(4 * np.sqrt(0.9 * 0.1 / 200), rel=0.35)
    gain = gain_interval(better, worse, bootstrap)
    assert 0 < gain.low < gain.value == pytest.approx(ours.mean() - theirs.mean())
    same = gain_interval(better, better, bootstrap)
    assert (same.low, same.high) == (0, 0)


def test_intervals_of_a_divergence() -> None:
    bootstrap = Bootstrap(np.arange(100), resamples=2000, seed=0)
    values = np.random.default_rng(0).random(100)
    near, far = make_outcomes(values.tolist(), "kl"), make_outcomes((values + 1).tolist(), "kl")
    found = quality_interval(near, bootstrap)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.exp(-values.mean()))
    gain = gain_interval(near, far, bootstrap)
    assert (gain.low, gain.value, gain.high) == pytest.approx((1, 1, 1))
