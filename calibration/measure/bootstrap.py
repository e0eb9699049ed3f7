# SPDX-License-Identifier: Apache-2.0
"""Intervals by the paired bootstrap. Scenes are resampled: the questions of one picture are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from fastmmoe.runtime.types import Array

COVERAGE = 0.95
_AT_A_TIME = 1000


class Interval(msgspec.Struct, frozen=True):
    """A value with the bounds of its 95% interval; NaN where every resample divides by zero."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resamples of the scenes of a data set, the same ones for every question asked of it, which pairs them.

    Args:
        scenes: [N] the scene of each of N questions.
        resamples: how many.
        seed: the choices follow from it.
    Source: percentile intervals of a cluster bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
    """

    def __init__(self, scenes: Sequence[int] | Array, *, resamples: int, seed: int) -> None:
        _, self._scene_of = np.unique(np.asarray(scenes), return_inverse=True)
        self._scenes = int(self._scene_of.max()) + 1
        self._resamples, self._seed = resamples, seed

    def ratios(self, numerators: Array, denominators: Array) -> list[Interval]:
        """Interval of sum(numerator) / sum(denominator) for each of M quantities, over questions.

        Args:
            numerators, denominators: [N, M] float64, by question.
        """
        over, under = self._by_scene(numerators), self._by_scene(denominators)
        rng = np.random.default_rng(self._seed)
        even = np.full(self._scenes, 1 / self._scenes)
        found = []
        for start in range(0, self._resamples, _AT_A_TIME):
            size = min(_AT_A_TIME, self._resamples - start)
            weights = rng.multinomial(self._scenes, even, size).astype(np.float64)
            found.append(_divide(weights @ over, weights @ under))
        values = _divide(over.sum(axis=0), under.sum(axis=0))
        samples = np.concatenate(found)
        return [_interval(float(value), column) for value, column in zip(values, samples.T, strict=True)]

    def _by_scene(self, values: Array) -> Array:
        sums = np.zeros((self._scenes, values.shape[1]))
        np.add.at(sums, self._scene_of, values)
        return sums


def _divide(over: Array, under: Array) -> Array:
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0)


def _interval(value: float, samples: Array) -> Interval:
    # A resample of few scenes may hold no question of a kind, or none that the full model answers right.
    defined = samples[np.isfinite(samples)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
