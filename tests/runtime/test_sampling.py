# SPDX-License-Identifier: Apache-2.0
"""Tokens drawn from logits: their distribution, what seed and position decide, log-probabilities."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.sampling import choose, distribution, draw, greatest, log_softmax, logprobs_of

LOGITS = np.array([1.0, 2.5, -3.0, 2.0, 0.0, 1.0, -1.0, 2.25], np.float32)
DRAWS = 20_000
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 6: 22.46, 7: 24.32}
"""Chi-square at 0.1 % by degrees of freedom."""


def expected(temperature: float, top_k: int = 0, top_p: float = 1.0) -> dict[int, float]:
    """Token -> probability, the slow way."""
    weights = {i: math.exp(float(value) / temperature) for i, value in enumerate(LOGITS)}
    ranked = sorted(weights, key=lambda i: (-weights[i], i))[: top_k if top_k > 0 else None]
    total, kept, mass = sum(weights[i] for i in ranked), [], 0.0
    for i in ranked:
        kept.append(i)
        mass += weights[i] / total
        if mass >= top_p:
            break
    left = sum(weights[i] for i in kept)
    return {i: weights[i] / left for i in kept}


def chi_square(options: RequestOptions, probabilities: dict[int, float]) -> float:
    """How far draws at the first positions are from the probabilities; infinite where one has none."""
    counts = Counter(choose(LOGITS, options, position) for position in range(DRAWS))
    if counts.keys() - probabilities.keys():
        return math.inf
    return sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in probabilities.items())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (2.0, -1, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.8), (0.7, 4, 0.9), (1.0, 2, 1.0)],
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    options = RequestOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=5)
    probabilities = expected(temperature, top_k, top_p)
    assert chi_square(options, probabilities) < CRITICAL[len(probabilities) - 1]


def test_the_test_of_draws_finds_a_small_mistake() -> None:
    """A temperature off by a tenth, and a token that should not be there."""
    assert chi_square(RequestOptions(temperature=1.1), expected(1.0)) > CRITICAL[7]
    assert chi_square(RequestOptions(temperature=1.0, top_k=5), expected(1.0, 4)) > CRITICAL[3]


def test_tokens_and_probabilities_of_a_distribution() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        logits = np.round(random.normal(size=8), 1).astype(np.float32)
        options = {"temperature": float(random.uniform(0.2, 3)), "top_k": int(random.integers(-1, 10))}
        top_p = float(random.uniform(0.05, 1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "LOGITS", logits)
            theirs = expected(top_p=top_p, **options)  # type: ignore[arg-type]
        ids, p = distribution(logits, top_p=top_p, **options)  # type: ignore[arg-type]
        assert ids.tolist() == sorted(theirs) and p == pytest.approx([theirs[i] for i in sorted(theirs)])


@pytest.mark.parametrize(
    "options", [RequestOptions(), RequestOptions(temperature=5, top_k=1), RequestOptions(temperature=5, top_p=1e-9)]
)
def test_what_leaves_the_most_probable_token_alone(options: RequestOptions) -> None:
    """The smaller id of equal ones."""
    logits = np.array([-1e30, 3, 7, 7, 6.99], np.float32)
    assert {choose(logits, options, position) for position in range(50)} == {2}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_temperatures_close_to_zero(temperature: float) -> None:
    options = RequestOptions(temperature=temperature)
    logits = np.array([-1e30, 3, 7, 7, 6.99], np.float32)
    assert {choose(logits, options, position) for position in range(50)} == {2, 3}


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.49, 1), (0.51, 3), (1 - 2.0**-53, 3)])
def test_borders_of_what_is_drawn(number: float, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token that has no probability, at either end."""
    monkeypatch.setattr("fastmmoe.runtime.sampling.draw", lambda *_: number)
    logits = np.array([-1e30, 2, -1e30, 2, -1e30], np.float32)
    assert choose(logits, RequestOptions(temperature=1.0), 0) == token


def test_high_temperatures_are_uniform() -> None:
    ids, p = distribution(LOGITS, 1e300, 0, 1.0)
    assert ids.tolist() == [*range(8)] and p == pytest.approx([1 / 8] * 8)


def test_seed_and_position_decide_what_is_drawn() -> None:
    options = RequestOptions(temperature=1.0, seed=7)
    drawn = [choose(LOGITS, options, position) for position in range(40)]
    assert drawn == [choose(LOGITS, options, position) for position in range(40)]
    assert drawn != [choose(LOGITS, RequestOptions(temperature=1.0, seed=8), position) for position in range(40)]
    assert drawn[:-1] != drawn[1:]
    numbers = [draw(seed, position) for seed in (0, 1, 2**80) for position in range(300)]
    assert len(set(numbers)) == 900 and min(numbers) >= 0 and max(numbers) < 1
    # The same in every version: answers of a seed can be kept.
    assert [round(draw(3, position), 6) for position in (0, 1)] == [0.724389, 0.743739]


@pytest.mark.parametrize(
    ("values", "count", "places"),
    [
        ([1.0, 3.0, 2.0], 2, [1, 2]),
        ([2.0, 3.0, 3.0, 2.0, 2.0], 3, [1, 2, 0]),
        ([1.0, 1.0], 5, [0, 1]),
        ([1.0], 0, []),
    ],
)
def test_greatest_values(values: list[float], count: int, places: list[int]) -> None:
    assert greatest(np.array(values), count).tolist() == places


@pytest.mark.parametrize("size", [1, 7, 200, 201, 5000])
@pytest.mark.parametrize("count", [1, 2, 50, 4999])
@pytest.mark.parametrize("order", ["random", "ties", "equal", "rising", "falling", "at the end"])
def test_greatest_values_of_many(size: int, count: int, order: str) -> None:
    """As a stable sort has them, wherever they are."""
    random = np.random.default_rng(size + count)
    values = random.standard_normal(size).astype(np.float32)
    if order == "at the end":
        values[-count:] += 10
    sorted_values = np.sort(values)
    values = {
        "ties": np.round(values),
        "equal": np.zeros(size, np.float32),
        "rising": sorted_values,
        "falling": sorted_values[::-1],
    }.get(order, values)
    assert greatest(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()


def test_log_probabilities() -> None:
    found = log_softmax(np.stack([LOGITS, LOGITS + 1e4]))
    assert found.dtype == np.float64 and np.exp(found).sum(1) == pytest.approx([1, 1])
    by_hand = {i: math.log(p) for i, p in expected(1.0).items()}
    assert found[0].tolist() == pytest.approx([by_hand[i] for i in range(8)])
    one = logprobs_of(LOGITS, 2, 3)
    assert one.chosen == pytest.approx(by_hand[2])
    assert [i for i, _ in one.top] == [1, 7, 3] and [value for _, value in one.top] == pytest.approx(
        [by_hand[i] for i in (1, 7, 3)]
    )
    assert logprobs_of(LOGITS, 2, 0).top == ()
