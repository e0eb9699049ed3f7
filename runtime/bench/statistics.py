# SPDX-License-Identifier: Apache-2.0
"""Numbers that stand for samples, and an interval for the ratio of two medians that assumes no distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from fastmmoe.runtime.types import Array

CONFIDENCE = 0.95
"""The least that an interval has."""
P90 = 0.9
MOST_EXACT = 2500
"""Pairs of samples up to which orders are counted."""
MOST_PAIRS = 1 << 20
"""Up to which their quotients are sorted."""
RESOLVED = 1e-9
"""Share of a quotient up to which it is found without."""


def mean(samples: Sequence[float]) -> float:
    """Their mean."""
    return math.fsum(samples) / len(samples)


def deviation(samples: Sequence[float]) -> float:
    """Their standard deviation, of a sample; 0 of a single one."""
    if len(samples) < 2:
        return 0.0
    middle = mean(samples)
    return math.sqrt(math.fsum((one - middle) ** 2 for one in samples) / (len(samples) - 1))


def median(samples: Sequence[float]) -> float:
    """Their median."""
    return float(np.median(samples))


def quantile(samples: Sequence[float], share: float) -> float:
    """So large a share of them is smaller; between two samples it is interpolated."""
    return float(np.quantile(samples, share))


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Bounds of the factor between two samples of times, with at least CONFIDENCE; None where they are too few.

    The Mann-Whitney test, inverted: every quotient of a time after and one before, sorted; as many are cut at both ends
    as the test takes for chance. Exact for independent times whose distributions differ by a factor, whatever they are.
    """
    if min((*before, *after)) <= 0:
        return None
    cut, pairs = _cut(len(before), len(after)), len(before) * len(after)
    if cut == 0:
        return None
    first, second = (np.sort(np.asarray(times, np.float64)) for times in (before, after))
    if pairs > MOST_PAIRS:
        return _quotient(first, second, cut), _quotient(first, second, pairs + 1 - cut)
    quotients = np.sort((second / first[:, None]).ravel())
    return float(quotients[cut - 1]), float(quotients[-cut])


def _quotient(before: Array, after: Array, rank: int) -> float:
    """The quotient of a time after and one before, both sorted, that has this rank among all, from 1, by bisection."""
    low, high = float(after[0] / before[-1]), float(after[-1] / before[0])
    while high / low > 1 + RESOLVED:
        middle = math.sqrt(low) * math.sqrt(high)
        if int(np.searchsorted(after, middle * before, side="right").sum()) >= rank:
            high = middle
        else:
            low = middle
    return high


@lru_cache
def _cut(first: int, second: int) -> int:
    """How many of the first * second sorted quotients a bound is from its end; 0 = there is no such bound."""
    pairs = first * second
    if pairs > MOST_EXACT:
        # The number of such pairs is normal by then.
        normal = NormalDist(pairs / 2, math.sqrt(pairs * (first + second + 1) / 12))
        return math.floor(normal.inv_cdf((1 - CONFIDENCE) / 2))
    ways = _rank_sums(first, second)
    allowed = (1 - CONFIDENCE) / 2 * sum(ways)
    below, cut = 0, 0
    for count in ways:
        below += count
        if below > allowed:
            break
        cut += 1
    return cut


def _rank_sums(first: int, second: int) -> list[int]:
    """How many orders of so many samples have 0, 1, ... pairs in which the one of `second` is the smaller.

    Coefficients of prod_i (1 - x^(second + i)) / (1 - x^i), i = 1 to first, in exact integers.
    """
    ways = [1] + [0] * (first * second)
    for i in range(1, first + 1):
        for power in range(len(ways) - 1, second + i - 1, -1):
            ways[power] -= ways[power - second - i]
        for power in range(i, len(ways)):
            ways[power] += ways[power - i]
    return ways
