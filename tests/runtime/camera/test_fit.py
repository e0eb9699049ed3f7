# SPDX-License-Identifier: Apache-2.0
"""The model of time: lines through medians, a load that is followed at once, a spread that keeps a promise."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.runtime.camera.fit import Line, TimeModel, Times, Work, weighted_quantile

WORK = Work(5, 2.0, 3)


def true_ms(work: Work, load: float = 1.0) -> Times:
    return Times(load * 15 * work.tiles, load * (10 + 40 * work.gflops), load * 2 * work.steps)


def taught(count: int = 60, sd: float = 0.0, seed: int = 0) -> TimeModel:
    """A model that has seen requests of all kinds, with noise."""
    rng, model = np.random.default_rng(seed), TimeModel()
    for _ in range(count):
        work = Work(int(rng.integers(1, 8)), float(rng.uniform(0.5, 3)), 3)
        model.observe(work, true_ms(work, float(rng.lognormal(0, sd))))
    return model


def test_a_line_is_found() -> None:
    line = Line()
    for x in (1.0, 2.0, 4.0):
        line.add(x, 7 + 3 * x)
    assert line.constant == pytest.approx(7) and line.slope == pytest.approx(3) and line(10) == pytest.approx(37)


def test_one_amount_of_work_says_that_time_is_in_proportion() -> None:
    line = Line()
    line.add(2.0, 10)
    line.add(2.0, 12)
    assert line(4.0) == pytest.approx(22, rel=0.01)


def test_neither_part_of_a_line_is_below_zero() -> None:
    falling, late = Line(), Line()
    for x in (1.0, 2.0, 4.0):
        falling.add(x, 20 - x)
        late.add(x, 10 * (x - 0.9))
    assert falling.slope == 0 and falling(100.0) == pytest.approx(18)
    assert late.constant == 0 and late(4.0) > 0


def test_times_that_were_held_up_do_not_bend_a_line() -> None:
    line = Line()
    for n in range(60):
        x = 1.0 + n % 6
        line.add(x, (7 + 3 * x) * (5 if n % 10 == 3 else 1))
    assert line(3.5) == pytest.approx(17.5, rel=0.05)


def test_what_was_not_seen_is_expected_from_what_was() -> None:
    model = taught()
    (found,) = model.expect_ms([WORK])
    assert found / model.spread == pytest.approx(true_ms(WORK).total_ms, rel=0.02)
    assert model.expect_vision_ms(5) / model.spread == pytest.approx(75, rel=0.02)
    assert model.steps == 3


@pytest.mark.parametrize("sd", [0.03, 0.2])
def test_nine_of_ten_requests_take_no_longer_than_expected(sd: float) -> None:
    rng, kept = np.random.default_rng(1), []
    model = taught(100, sd)
    for _ in range(400):
        times = true_ms(WORK, float(rng.lognormal(0, sd)))
        kept.append(times.total_ms <= model.expect_ms([WORK])[0])
        model.observe(WORK, times)
    # Of 400, two standard deviations of a share are 0.03.
    assert 0.88 <= np.mean(kept) <= 0.975


@pytest.mark.parametrize("load", [0.4, 2.5])
def test_a_load_is_followed_within_two_requests_and_leaves_the_lines_alone(load: float) -> None:
    model = taught()
    for _ in range(2):
        model.observe(WORK, true_ms(WORK, load))
    assert model.load == pytest.approx(load, rel=0.03)
    for gflops in [*np.linspace(0.5, 3, 30)] * 6:
        model.observe(Work(5, float(gflops), 3), true_ms(Work(5, float(gflops), 3), load))
    expected = [ms / model.spread / load for ms in model.expect_ms([Work(1, 0.5, 3), Work(7, 3.0, 3)])]
    assert expected == pytest.approx([51, 241], rel=0.05)


def test_one_request_that_is_held_up_moves_little() -> None:
    for seen in (5, 10, 60):
        model = taught(seen)
        before = model.expect_ms([WORK])[0]
        model.observe(WORK, true_ms(WORK, 8.0))
        assert model.expect_ms([WORK])[0] == pytest.approx(before, rel=0.25), seen


def test_times_of_zero_are_taken() -> None:
    model = TimeModel()
    for _ in range(5):
        model.observe(Work(1, 1.0, 0), Times(0.0, 0.0, 0.0))
    assert model.expect_ms([WORK])[0] < 1


def test_a_weighted_quantile() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert weighted_quantile(values, np.ones(3), 0.5) == 2
    assert weighted_quantile(values[:2], np.ones(2), 0.5) == 3
    assert weighted_quantile(values, np.array([5.0, 1.0, 1.0]), 0.5) == 3
    assert weighted_quantile(values, np.ones(3), 0.0) == 1 and weighted_quantile(values, np.ones(3), 0.99) == 3
