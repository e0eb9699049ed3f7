# SPDX-License-Identifier: Apache-2.0
"""How long a request takes on this machine at this moment, learnt from the requests before it.

Three parts, each a line that two numbers give: vision by tiles, prefill by counted FLOPs, decoding by steps. What they
say is the shape; how fast the machine is just now is one factor for all of them, so that a load that comes or goes is
followed within two requests, and does not bend the lines. What the factor misses is a spread, of which a quantile is
taken. Medians everywhere: a request that was held up moves nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

SHARE = 0.9
"""Of requests that are to keep to what is expected."""
_BIN = math.log(1.03)
"""Amounts of work that differ by less are one."""
_REMEMBERED = 8
"""Times that are kept of each amount of work."""
_LOAD = 3
"""Requests whose median is the machine's speed."""
_ERRORS, _FADING = 100, 0.97
"""Requests whose errors make the spread, and the weight of each against the next one."""
_FIRST_SPREAD, _FIRST_ERRORS = 1.2, 20
"""The spread where nothing is known, and the requests that it stands for: one that is held up is then never many."""
_LEAST_MS = 1e-6


@dataclass(frozen=True)
class Work:
    """What a request computes: tiles of the vision graph, counted GFLOPs of the prefill, decode steps."""

    tiles: float
    gflops: float
    steps: float


@dataclass(frozen=True)
class Times:
    """What its parts took, in milliseconds: pictures and vision; prefill and all that is no other part; decoding."""

    vision_ms: float
    prefill_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        """The whole request."""
        return self.vision_ms + self.prefill_ms + self.decode_ms


class Line:
    """Time by amount of work: a constant and a slope, neither below 0.

    Several times at one amount count as their median, and the slope is the median of those between amounts (Theil and
    Sen), so that neither follows an outlier. With one amount time is in proportion to it.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, deque[float]]] = {}
        self.constant = self.slope = 0.0

    def add(self, amount: float, ms: float) -> None:
        """Learn from a time; amount: above 0."""
        key = round(math.log(amount) / _BIN)
        self._seen.setdefault(key, (amount, deque(maxlen=_REMEMBERED)))[1].append(ms)
        self._fit()

    def __call__(self, amount: float) -> float:
        """Expected milliseconds."""
        return self.constant + self.slope * amount

    def _fit(self) -> None:
        x = np.array([amount for amount, _ in self._seen.values()])
        y = np.array([median(times) for _, times in self._seen.values()])
        counts = np.array([len(times) for _, times in self._seen.values()], float)
        self.constant, self.slope = 0.0, weighted_quantile(y / x, counts, 0.5)
        if len(x) == 1:
            return
        i, j = np.triu_indices(len(x), 1)
        reach = np.abs(x[i] - x[j])
        slope = weighted_quantile((y[i] - y[j]) / (x[i] - x[j]), reach * np.sqrt(counts[i] * counts[j]), 0.5)
        slope = max(slope, 0.0)
        constant = weighted_quantile(y - slope * x, counts, 0.5)
        if constant >= 0:
            self.constant, self.slope = constant, slope


class TimeModel:
    """The time of requests, from those before.

    Args:
        share: of requests that are to take no longer than is expected.
    """

    def __init__(self, share: float = SHARE) -> None:
        # A bit more than was asked for: what is expected is itself not exact.
        self._quantile = share + (1 - share) / 4
        self._vision, self._prefill = Line(), Line()
        self._step_ms: deque[float] = deque(maxlen=4 * _REMEMBERED)
        self._steps: deque[float] = deque(maxlen=4 * _REMEMBERED)
        self._loads: deque[float] = deque([1.0] * _LOAD, maxlen=_LOAD)
        self._errors: deque[float] = deque([_FIRST_SPREAD] * _FIRST_ERRORS, maxlen=_ERRORS)
        self._ms_a_step = 0.0
        self.is_fitted = False

    @property
    def steps(self) -> float:
        """Decode steps that few answers exceed."""
        return float(np.quantile(self._steps, SHARE, method="higher")) if self._steps else 0.0

    @property
    def load(self) -> float:
        """How slow the machine is now, in units of its speed when the lines were learnt."""
        return median(self._loads)

    @property
    def spread(self) -> float:
        """The factor by which few requests exceed what the lines and the load say."""
        ages = np.arange(len(self._errors))[::-1]
        return weighted_quantile(np.array(self._errors), _FADING**ages, self._quantile)

    def observe(self, work: Work, times: Times) -> None:
        """Learn from a request."""
        if self.is_fitted:
            ratio = max(times.total_ms, _LEAST_MS) / max(self._shape(work), _LEAST_MS)
            self._errors.append(ratio / self.load)
            self._loads.append(ratio)
        load = self.load
        self._vision.add(work.tiles, max(times.vision_ms, _LEAST_MS) / load)
        self._prefill.add(work.gflops, max(times.prefill_ms, _LEAST_MS) / load)
        self._steps.append(work.steps)
        if work.steps:
            self._step_ms.append(times.decode_ms / work.steps / load)
            self._ms_a_step = median(self._step_ms)
        self.is_fitted = True

    def expect_ms(self, works: Sequence[Work]) -> list[float]:
        """What each of these takes at most, in the share of cases."""
        factor = self.load * self.spread
        return [factor * self._shape(work) for work in works]

    def expect_vision_ms(self, tiles: float) -> float:
        """As `expect_ms`, of pictures and vision alone."""
        return self.load * self.spread * self._vision(tiles)

    def _shape(self, work: Work) -> float:
        return self._vision(work.tiles) + self._prefill(work.gflops) + self._ms_a_step * work.steps


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The least of the values that, with those below it, has more than this share of the weight.

    Args:
        values, weights: [n], n at least 1; weights above 0.
        share: in [0, 1).
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    place = int(np.searchsorted(reached, share * reached[-1], side="right"))
    return float(values[order[min(place, len(order) - 1)]])
