# SPDX-License-Identifier: Apache-2.0
"""A camera, a clock and a model whose times are written down: the loop without a thread, a bundle or a wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace

from fastmmoe.runtime.answer import Answer
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.camera.loop import Loop, Seen
from fastmmoe.runtime.camera.reader import Frame
from fastmmoe.runtime.camera.settings import RETENTIONS, Settings
from fastmmoe.runtime.cost.flops import count_request
from fastmmoe.runtime.generation import RequestStats
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.options import RequestOptions
from tests.support.manifests import toy_manifest

TEXT_TOKENS, STEPS = 12, 2
VISION_MS, PREFILL_MS, GFLOP_MS, STEP_MS = 15.0, 10.0, 6.0e3, 2.0
"""Of a tile, of each prefill and of its counted GFLOPs, of a decode step, on a machine without load."""
SIDE = 64
"""Of a frame, in pixels: 5 tiles of the toy model of InternVL."""


@dataclass
class FakeClock:
    """Seconds that pass only where somebody says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeCamera:
    """Frames that came at a rate since the clock's start; the newest is given, as `NewestFrame` does."""

    clock: FakeClock
    fps: float = 30.0
    image: Any = None
    taken: int = -1

    def __post_init__(self) -> None:
        self._start = self.clock()

    def take(self) -> Frame:
        """The newest frame, which is waited for where it has been taken."""
        self.clock.now = max(self.clock(), self._start + (self.taken + 1) / self.fps)
        newest = int((self.clock() - self._start) * self.fps + 1e-6)
        dropped, self.taken = newest - self.taken - 1, newest
        image = np.zeros((SIDE, SIDE, 3), np.uint8) if self.image is None else self.image
        return Frame(self._start + newest / self.fps, image, dropped)


@dataclass
class ScriptedVLM:
    """Takes the time that its numbers say, times a factor of each request.

    Attributes:
        factor: number of the request -> how slow the machine is in it.
        asked: messages and options of every request.
    """

    clock: FakeClock
    factor: Callable[[int], float] = lambda _: 1.0
    manifest: Manifest = field(default_factory=lambda: internvl_manifest())
    cold_ms: float = 300.0
    asked: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)

    def generate(self, messages: Any, **options: Any) -> Answer:
        """As `VLM.generate`."""
        picture = Picture(messages[-1]["content"][0]["image"])
        config, number = self.manifest.processor, len(self.asked)
        cut = family_of(config).cut(config, [picture.size], options["max_tiles"], 0)
        request = count_request(
            self.manifest,
            tokens=cut.visual_counts[0] + TEXT_TOKENS,
            visual_tokens=cut.visual_counts[0],
            retention=options["retention"],
        )
        factor = self.factor(number)
        stats = RequestStats(
            method="fastmmoe",
            retention=options["retention"],
            text_tokens=TEXT_TOKENS,
            visual_tokens=cut.visual_counts[0],
            kept_visual_tokens=request.schedule.kept_visual_tokens,
            merged_vectors=request.schedule.merged_vectors,
            visual_top_k=request.schedule.visual_top_k,
            tiles=cut.tile_counts[0],
            past_tokens=0,
            prefill_flops=request.prefill.total,
            prefill_flops_unmodified=request.unmodified.total,
            vision_flops=0,
            vision_ms=factor * VISION_MS * cut.tile_counts[0] + (self.cold_ms if number == 0 else 0.0),
            prefill_ms=factor * (PREFILL_MS + GFLOP_MS * request.prefill.total / 1e9),
            decode_ms=[factor * STEP_MS] * STEPS,
        )
        self.clock.now += (stats.vision_ms + stats.prefill_ms + sum(stats.decode_ms)) / 1e3
        self.asked.append((messages, options))
        return Answer("yes", (1, 2, 3), "stop", stats)


def internvl_manifest() -> Manifest:
    """A small one whose pictures have up to 7 tiles of 64 visual tokens."""
    manifest = toy_manifest("internvl3_5")
    return replace(manifest, processor=replace(manifest.processor, tokens_per_tile=64))


def run_loop(
    vlm: Any,
    budget_ms: float | None,
    count: int,
    *,
    fps: float = 30.0,
    retention: Any = RETENTIONS,
    **options: Any,
) -> list[Seen]:
    """What `watch` gives of so many frames of a fake camera."""
    settings = Settings(vlm.manifest, RequestOptions.of(options), retention)
    loop = Loop(vlm, "Is there a cup?", settings, budget_ms, "rgb", None, 0.9, vlm.clock, options)
    return list(loop.answers(FakeCamera(vlm.clock, fps), count))
