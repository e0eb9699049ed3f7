# SPDX-License-Identifier: Apache-2.0
"""The choice of retention and tiles on a scripted machine: budgets are kept through noise, loads and hold-ups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmmoe.runtime.camera.controller import FLOOR, LEARNING, NOTHING, RETENTION, TILES, VISION
from fastmmoe.runtime.camera.loop import FrameStats
from tests.support.scripted_camera import FakeClock, ScriptedVLM, run_loop

# Of the scripted machine without load, in ms: one tile at the least retention, five tiles at the least and at the
# greatest. What is aimed at is a bit less than a budget.
FLOOR_MS, FIVE_MS, ALL_MS = 35, 169, 238
SPREAD = 1.25

Factor = Callable[[int], float]


def noisy(sd: float, seed: int, held_up: float = 0.0) -> Factor:
    """Log-normal noise; this share of requests takes four times as long."""
    rng = np.random.default_rng(seed)
    factors = rng.lognormal(0, sd, 3000) * np.where(rng.random(3000) < held_up, 4.0, 1.0)
    return lambda number: float(factors[number])


def stats_of(budget_ms: float, count: int, factor: Factor = lambda _: 1.0) -> list[FrameStats]:
    return [seen.stats for seen in run_loop(ScriptedVLM(FakeClock(), factor), budget_ms, count)]


def met(stats: list[FrameStats]) -> float:
    return float(np.mean([bool(one.is_met) for one in stats]))


@pytest.mark.parametrize(
    ("budget_ms", "limit", "tiles"),
    [
        (0.4 * FLOOR_MS, VISION, 1),
        (0.9 * FLOOR_MS, FLOOR, 1),
        (1.5 * FLOOR_MS, TILES, 1),
        (SPREAD * (FIVE_MS + ALL_MS) / 2, RETENTION, 5),
        (2 * ALL_MS, NOTHING, 5),
    ],
)
def test_what_a_budget_takes(budget_ms: float, limit: str, tiles: int) -> None:
    """Retention first, then tiles; and it is said where nothing is enough."""
    last = stats_of(budget_ms, 60)[-1]
    assert (last.limit, last.tiles) == (limit, tiles)
    assert last.floor_ms is not None and last.vision_floor_ms is not None and last.expected_ms is not None
    assert FLOOR_MS < last.floor_ms < 1.3 * FLOOR_MS and 15 < last.vision_floor_ms < 1.3 * 15
    assert (last.expected_ms <= budget_ms) == (limit not in (FLOOR, VISION))


def test_it_starts_with_the_least_and_climbs() -> None:
    stats = stats_of(2 * ALL_MS, 30)
    assert [one.limit for one in stats[:2]] == [LEARNING] * 2 and stats[2].limit != LEARNING
    assert [(one.retention, one.tiles) for one in stats[:2]] == [(0.15, 1)] * 2
    assert (stats[-1].retention, stats[-1].tiles) == (1.0, 5)


@pytest.mark.parametrize("times", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("sd", "held_up"), [(0.05, 0.0), (0.15, 0.0), (0.05, 0.05)], ids=["5%", "15%", "held up"])
def test_nine_of_ten_frames_keep_to_the_budget(times: float, seed: int, sd: float, held_up: float) -> None:
    stats = stats_of(times * FLOOR_MS, 200, noisy(sd, seed, held_up))
    assert met(stats) >= 0.9


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_budget_has_is_spent(seed: int) -> None:
    """The p90 of the times is near the budget, not far below it, where a choice is left."""
    budget_ms = SPREAD * (FIVE_MS + ALL_MS) / 2
    late = stats_of(budget_ms, 300, noisy(0.05, seed))[100:]
    p90 = np.quantile([one.latency_ms for one in late], 0.9)
    assert 0.85 * budget_ms <= p90 <= budget_ms


@pytest.mark.parametrize("load", [1.4, 2.5])
@pytest.mark.parametrize("budget_ms", [4 * FLOOR_MS, 8 * FLOOR_MS])
def test_a_sudden_load_costs_few_frames_and_goes_without_a_trace(load: float, budget_ms: float) -> None:
    """It comes at frame 100 and goes at 200."""
    noise = noisy(0.05, 7)
    stats = stats_of(budget_ms, 300, lambda n: noise(n) * (load if 100 <= n < 200 else 1.0))
    before, during, after = stats[50:100], stats[100:200], stats[210:230]
    assert met(stats) >= 0.9 and met(during[10:]) >= 0.9
    assert sum(not one.is_met for one in during[:10]) <= 4

    def work(some: list[FrameStats]) -> float:
        return float(np.mean([one.tiles + one.retention for one in some]))

    assert work(after) >= 0.9 * work(before)


def test_a_machine_that_slows_down_is_followed() -> None:
    noise = noisy(0.05, 5)
    stats = stats_of(4 * FLOOR_MS, 400, lambda n: noise(n) * (1 + n / 200))
    assert met(stats) >= 0.9 and met(stats[300:]) >= 0.9


def test_the_first_request_is_not_learnt_from() -> None:
    """It pays for what no other one does: 300 ms here."""
    stats = stats_of(3 * FLOOR_MS, 10)
    assert stats[0].latency_ms > 300 and not stats[0].is_met
    assert all(one.is_met for one in stats[1:])


def test_pictures_that_cannot_be_smaller_than_a_size_change_their_settings() -> None:
    """The learnt lines are of tiles and FLOPs, so they hold for frames of another size."""
    from fastmmoe.runtime.camera.controller import Controller
    from fastmmoe.runtime.camera.settings import Settings
    from fastmmoe.runtime.request.options import RequestOptions

    vlm = ScriptedVLM(FakeClock())
    controller = Controller(3 * ALL_MS, Settings(vlm.manifest, RequestOptions()))
    for _ in range(20):
        choice = controller.choose((64, 64))
        picture = {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}
        chosen = {"retention": choice.setting.retention, "max_tiles": choice.setting.max_tiles}
        answer = vlm.generate([{"role": "user", "content": [picture]}], **chosen)
        assert answer.stats.ttft_ms is not None
        controller.observe(answer.stats, answer.stats.ttft_ms + sum(answer.stats.decode_ms))
    wide = controller.choose((96, 32))
    assert wide.setting.tiles == 4 and wide.limit == NOTHING
    assert wide.expected_ms is not None and 130 < wide.expected_ms < 260
