# SPDX-License-Identifier: Apache-2.0
"""Intervals of the paired bootstrap over scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastmmoe.calibration.measure.bootstrap import Bootstrap, Interval


def column(values: list[float]) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def test_equals_a_loop_over_the_same_resamples() -> None:
    rng = np.random.default_rng(3)
    scenes = np.repeat(np.arange(7), [1, 3, 2, 2, 4, 1, 3]) * 10
    over, under = rng.random((16, 2)), rng.random((16, 2))
    found = Bootstrap(scenes, resamples=40, seed=5).ratios(over, under)
    drawn = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), 40)
    for m in range(2):
        samples = []
        for counts in drawn:
            weights = counts[scenes // 10]
            samples.append((weights * over[:, m]).sum() / (weights * under[:, m]).sum())
        assert found[m].value == pytest.approx(over[:, m].sum() / under[:, m].sum(), rel=1e-12)
        assert (found[m].low, found[m].high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])), rel=1e-12)


def test_scenes_not_questions_are_resampled() -> None:
    """Ten questions of a scene that are all right or all wrong count as one."""
    rng = np.random.default_rng(0)
    by_scene = (rng.random(400) < 0.8).astype(np.float64)
    right = np.repeat(by_scene, 10)[:, None]
    (found,) = Bootstrap(np.repeat(np.arange(400), 10), resamples=4000, seed=0).ratios(right, np.ones_like(right))
    share = by_scene.mean()
    assert found.value == pytest.approx(share)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 400), rel=0.06)


def test_quantities_share_the_resamples() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random((90, 1)) < 0.7).astype(np.float64)
    (same,) = Bootstrap(np.arange(90), resamples=200, seed=0).ratios(right, right)
    assert same == Interval(1.0, 1.0, 1.0)


def test_the_seed_alone_decides() -> None:
    right = np.random.default_rng(0).random((60, 1))
    one, again = (Bootstrap(np.arange(60), resamples=2500, seed=4).ratios(right, np.ones_like(right)) for _ in "ab")
    other = Bootstrap(np.arange(60), resamples=2500, seed=5).ratios(right, np.ones_like(right))
    assert one == again
    assert one != other


def test_resamples_without_a_denominator_are_left_out() -> None:
    """One scene of three holds the kind: a third of the resamples lack it or so, the others all say 0.5."""
    over, under = column([0, 0, 1, 0]), column([0, 0, 1, 1])
    (found,) = Bootstrap([0, 1, 2, 2], resamples=300, seed=0).ratios(over, under)
    assert found == Interval(0.5, 0.5, 0.5)


def test_no_denominator_at_all_is_undefined() -> None:
    (found,) = Bootstrap([0, 1], resamples=20, seed=0).ratios(column([0, 1]), column([0, 0]))
    assert all(math.isnan(v) for v in (found.value, found.low, found.high))
