# SPDX-License-Identifier: Apache-2.0
"""Fronts: the points that no other beats, and how sure their qualities are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmmoe.calibration.evaluate import Outcomes, quality
from fastmmoe.calibration.measure.bootstrap import Bootstrap, Interval
from fastmmoe.runtime.types import Array

RESAMPLES = 10_000


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (quality, cost) that no other one beats, cheapest first.

    A point is beaten by one that is at least as good and as cheap, and better in one of the two. Of equal points the
    first counts.
    """
    found: list[int] = []
    best = -np.inf
    for place in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0], i)):
        if points[place][0] > best:
            found.append(place)
            best = points[place][0]
    return found


def first_fronts(points: Sequence[tuple[float, float]], count: int) -> list[int]:
    """Places on the front, on the front of the rest, and so on `count` times."""
    rest, found = list(range(len(points))), []
    for _ in range(count):
        best = {rest[i] for i in front([points[i] for i in rest])}
        found += sorted(best)
        rest = [i for i in rest if i not in best]
    return found


def quality_interval(outcomes: Outcomes, bootstrap: Bootstrap) -> Interval:
    """The quality and its interval."""
    found = _interval_of(outcomes.values, bootstrap)
    # Percentiles follow a function that rises or falls throughout; KL is the less the better.
    ends = [quality(outcomes.kind, value) for value in (found.low, found.high)]
    return Interval(outcomes.quality, float(min(ends)), float(max(ends)))


def gain_interval(ours: Outcomes, theirs: Outcomes, bootstrap: Bootstrap) -> Interval:
    """Of what one policy is better by, on the same questions: share of right answers, or nats of KL."""
    sign = 1 if ours.kind == "accuracy" else -1
    return _interval_of(sign * (ours.values - theirs.values), bootstrap)


def _interval_of(values: Array, bootstrap: Bootstrap) -> Interval:
    (found,) = bootstrap.ratios(values[:, None], np.ones((len(values), 1)))
    return found
