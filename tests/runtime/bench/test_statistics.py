# SPDX-License-Identifier: Apache-2.0
"""Numbers of samples, and how often an interval holds the true factor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastmmoe.runtime.bench import statistics
from fastmmoe.runtime.bench.statistics import CONFIDENCE, deviation, mean, median, quantile, ratio_interval


def test_numbers_that_stand_for_samples() -> None:
    samples = [4.0, 1.0, 3.0, 2.0]
    assert (mean(samples), median(samples)) == (2.5, 2.5)
    assert deviation(samples) == pytest.approx(np.std(samples, ddof=1))
    assert deviation([3.0]) == 0.0
    assert quantile([0.0, 10.0], 0.9) == 9.0


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (3, 3), (4, 2), (4, 5)])
def test_orders_are_counted(first: int, second: int) -> None:
    """Beside all orders of so many samples, written out."""
    expected = [0] * (first * second + 1)
    for places in itertools.combinations(range(first + second), first):
        others = [place for place in range(first + second) if place not in places]
        expected[sum(other < place for place in places for other in others)] += 1
    assert statistics._rank_sums(first, second) == expected


@pytest.mark.parametrize(("count", "cut"), [(3, 0), (4, 1), (5, 3), (10, 24), (20, 128)])
def test_bounds_are_those_of_the_published_tables(count: int, cut: int) -> None:
    """Critical values of U, two-sided at 5 % (0, 2, 23, 127), and one more."""
    assert statistics._cut(count, count) == cut


def test_many_samples_take_the_normal_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = statistics._cut(40, 40)
    monkeypatch.setattr(statistics, "MOST_EXACT", 100)
    statistics._cut.cache_clear()
    assert abs(statistics._cut(40, 40) - exact) <= 2
    statistics._cut.cache_clear()


def test_too_few_samples_have_no_interval() -> None:
    assert ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert ratio_interval([0.0] * 5, [1.0] * 5) is None


def test_an_interval_by_hand() -> None:
    before, after = [1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 2.2, 2.4, 2.6, 2.8]
    quotients = sorted(b / a for a in before for b in after)
    assert ratio_interval(before, after) == (quotients[2], quotients[-3])


@pytest.mark.parametrize("count", [4, 5, 8])
def test_an_interval_holds_the_factor_as_often_as_it_says(count: int) -> None:
    """Of times with a long tail, as a busy machine's have."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        before, after = (1 + rng.exponential(0.2, count)) * 1.0, (1 + rng.exponential(0.2, count)) * 1.3
        interval = ratio_interval(before.tolist(), after.tolist())
        assert interval is not None
        held += interval[0] <= 1.3 <= interval[1]
    assert held / 2000 >= CONFIDENCE - 0.01


def test_quotients_that_are_too_many_to_sort_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two files of ten thousand samples there would be gigabytes."""
    random = np.random.default_rng(0)
    before, after = ((np.exp(random.normal(size=count)).round(2) + 0.01).tolist() for count in (70, 90))
    found = ratio_interval(before, after)
    assert found is not None
    monkeypatch.setattr(statistics, "MOST_PAIRS", 1)
    assert ratio_interval(before, after) == pytest.approx(found, rel=1e-8)
    many = [2.0] * 20_000
    assert ratio_interval(many, many) == pytest.approx((1, 1), rel=1e-8)
