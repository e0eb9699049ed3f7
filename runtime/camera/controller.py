# SPDX-License-Identifier: Apache-2.0
"""Chooses retention and tiles of the next frame so that its answer comes within the budget."""

from __future__ import annotations

from dataclasses import dataclass

from fastmmoe.runtime.camera.fit import SHARE, TimeModel, Times, Work
from fastmmoe.runtime.camera.settings import Setting, Settings
from fastmmoe.runtime.generation import RequestStats

LEARNING, NOTHING, RETENTION, TILES, FLOOR, VISION = "learning", "none", "retention", "tiles", "floor", "vision"
LIMITS = (LEARNING, NOTHING, RETENTION, TILES, FLOOR, VISION)
"""What the budget took: nothing is known yet; nothing; retention; tiles, and retention where need be; even the smallest
setting exceeds it; the vision graph alone does."""


@dataclass(frozen=True)
class Choice:
    """A setting and why it was chosen; times in milliseconds, None while nothing is known.

    Attributes:
        limit: one of LIMITS; None without a budget.
        expected_ms: what the request takes at most in the share of cases that is aimed at.
        floor_ms: the same of the smallest setting, and of its pictures and vision alone.
    """

    setting: Setting
    limit: str | None = None
    expected_ms: float | None = None
    floor_ms: float | None = None
    vision_floor_ms: float | None = None


class Controller:
    """Retention first, then tiles: the most tiles of which some retention fits, and of these the greatest retention.

    It starts with the smallest setting and climbs by what it learns, so that no frame is spent on measuring.

    Args:
        budget_ms: of a request, from its frame to the end of its answer.
        share: of requests that are to keep to it.
    """

    def __init__(self, budget_ms: float, settings: Settings, share: float = SHARE) -> None:
        self._budget_ms, self._settings = budget_ms, settings
        self._model = TimeModel(share)
        self._text_tokens = 0
        self._is_warm = False

    def choose(self, size: tuple[int, int]) -> Choice:
        """The setting of a picture of this size, (width, height).

        Raises:
            InvalidRequest: a picture that cannot be cut.
        """
        by_tiles = self._settings.of(size, self._text_tokens)
        smallest = by_tiles[-1][-1]
        if not self._model.is_fitted:
            return Choice(smallest, LEARNING)
        settings = [setting for row in by_tiles for setting in row]
        steps = self._model.steps
        expected = self._model.expect_ms([Work(one.tiles, one.gflops, steps) for one in settings])
        floor_ms, vision_ms = expected[-1], self._model.expect_vision_ms(smallest.tiles)
        for place, (setting, ms) in enumerate(zip(settings, expected, strict=True)):
            if ms <= self._budget_ms:
                limit = NOTHING if place == 0 else RETENTION if place < len(by_tiles[0]) else TILES
                return Choice(setting, limit, ms, floor_ms, vision_ms)
        limit = VISION if vision_ms > self._budget_ms else FLOOR
        return Choice(smallest, limit, floor_ms, floor_ms, vision_ms)

    def observe(self, stats: RequestStats, latency_ms: float) -> None:
        """Learn from a request that took so long in all."""
        # A deadline has ended it before there was anything to learn.
        if not stats.prefill_ms:
            return
        self._text_tokens = stats.text_tokens
        # The first request pays for what no other one does.
        if not self._is_warm:
            self._is_warm = True
            return
        vision_ms, decode_ms = stats.preprocess_ms + stats.vision_ms, sum(stats.decode_ms)
        work = Work(stats.tiles, stats.prefill_flops / 1e9, len(stats.decode_ms))
        self._model.observe(work, Times(vision_ms, max(latency_ms - vision_ms - decode_ms, 0.0), decode_ms))
