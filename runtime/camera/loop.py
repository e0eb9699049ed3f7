# SPDX-License-Identifier: Apache-2.0
"""The newest frame of a source, answered again and again within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol

from fastmmoe.runtime.answer import Answer
from fastmmoe.runtime.camera.controller import Choice, Controller
from fastmmoe.runtime.camera.fit import SHARE
from fastmmoe.runtime.camera.frames import RGB, check_order, to_picture
from fastmmoe.runtime.camera.reader import Clock, Frame, NewestFrame
from fastmmoe.runtime.camera.settings import RETENTIONS, Settings, read_range
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.options import RequestOptions

if TYPE_CHECKING:
    from fastmmoe.runtime.vlm import VLM

_CHOSEN = {
    "retention": "watch takes retention=, one number or the least and the greatest",
    "pruning_rate": "watch takes retention=, the share to keep",
}


class Frames(Protocol):
    """What `NewestFrame` is to the loop."""

    def take(self) -> Frame | None:
        """The newest frame; None = there are no more."""


@dataclass(frozen=True)
class FrameStats:
    """What happened to one frame; times in milliseconds, None where there is no budget or nothing is known yet.

    Attributes:
        number: of the answered frames, from 0.
        stamp: when the frame was seen, in seconds of the clock.
        age_ms: from its stamp to the start of its request.
        answer_age_ms: from its stamp to the end of its answer.
        dropped: frames that came since the answered one before it, and were not asked about.
        latency_ms: of the request, from the start to the end of its answer; what the budget is for.
        is_met: whether that was within the budget.
        retention, tiles: of the request; tiles count global view or thumbnail.
        limit: what the budget took, one of `controller.LIMITS`.
        expected_ms, floor_ms, vision_floor_ms: see `controller.Choice`.
    """

    number: int
    stamp: float
    age_ms: float
    answer_age_ms: float
    dropped: int
    latency_ms: float
    budget_ms: float | None
    is_met: bool | None
    retention: float
    tiles: int
    limit: str | None
    expected_ms: float | None
    floor_ms: float | None
    vision_floor_ms: float | None


@dataclass(frozen=True)
class Seen:
    """A frame, as the source gave it, and what the model says about it."""

    image: Any
    answer: Answer
    stats: FrameStats

    @property
    def text(self) -> str:
        """The answer's."""
        return self.answer.text


def watch(
    vlm: VLM,
    source: Iterable[tuple[float | None, Any]],
    prompt: str,
    *,
    budget_ms: float | None = None,
    order: str = RGB,
    system: str | None = None,
    retention: float | Sequence[float] = RETENTIONS,
    share: float = SHARE,
    frames: int | None = None,
    clock: Clock = time.monotonic,
    **options: Any,
) -> Iterator[Seen]:
    """Ask about the newest frame of a source until it ends or the loop is left.

    Frames that come while a request runs are dropped, all but the newest, so that no delay grows. The time that the
    caller takes between two frames is not part of a budget.

    Args:
        source: an iterator of pairs (stamp, frame), see `NewestFrame`; frames as in `to_picture`, RGB or `order`.
        prompt: the question about every frame; it stands behind the picture.
        budget_ms: of each request. Retention, and where that is not enough the tiles, are chosen for it; None = the
            greatest retention and all tiles, always.
        retention: one number, or the least and the greatest that may be chosen.
        share: of frames that are to keep to the budget.
        frames: the most that are answered.
        clock: of the stamps and of all times here, in seconds.
        options: fields of `RequestOptions` but retention and pruning_rate; max_tiles is the most that may be chosen.
    Raises:
        InvalidRequest: arguments of another type or value; later a frame that is no picture, or what
            `VLM.generate_stream` refuses.
        BaseException: what the source raises, once its last frame has been answered.
    """
    request = check_arguments(
        prompt, system=system, budget_ms=budget_ms, share=share, frames=frames, retention=retention, **options
    )
    settings = Settings(vlm.manifest, request, retention)
    loop = Loop(vlm, prompt, settings, budget_ms, check_order(order), system, share, clock, options)
    return _read_and_answer(loop, source, frames)


def _read_and_answer(loop: Loop, source: Iterable[Any], most: int | None) -> Iterator[Seen]:
    with NewestFrame(source, clock=loop.clock) as frames:
        yield from loop.answers(frames, most)


@dataclass
class Loop:
    """The loop of `watch` over frames that somebody else reads; the arguments are those there."""

    vlm: VLM
    prompt: str
    settings: Settings
    budget_ms: float | None
    order: str
    system: str | None
    share: float
    clock: Clock
    options: dict[str, Any]

    def answers(self, frames: Frames, most: int | None = None) -> Iterator[Seen]:
        """One for each frame that is taken, at most so many."""
        budget_ms, number = self.budget_ms, 0
        controller = None if budget_ms is None else Controller(budget_ms, self.settings, self.share)
        while (most is None or number < most) and (frame := frames.take()) is not None:
            yield self._answer(frame, controller, number)
            number += 1

    def _answer(self, frame: Frame, controller: Controller | None, number: int) -> Seen:
        start = self.clock()
        picture = to_picture(frame.image, self.order)
        size = Picture(picture).size
        choice = Choice(self.settings.greatest(size)) if controller is None else controller.choose(size)
        chosen = {"retention": choice.setting.retention, "max_tiles": choice.setting.max_tiles}
        answer = self.vlm.generate(self._messages(picture), **{**self.options, **chosen})
        end = self.clock()
        latency_ms, budget_ms = (end - start) * 1e3, self.budget_ms
        if controller is not None:
            controller.observe(answer.stats, latency_ms)
        stats = FrameStats(
            number=number,
            stamp=frame.stamp,
            age_ms=(start - frame.stamp) * 1e3,
            answer_age_ms=(end - frame.stamp) * 1e3,
            dropped=frame.dropped,
            latency_ms=latency_ms,
            budget_ms=budget_ms,
            is_met=None if budget_ms is None else latency_ms <= budget_ms,
            retention=choice.setting.retention,
            tiles=answer.stats.tiles,
            limit=choice.limit,
            expected_ms=choice.expected_ms,
            floor_ms=choice.floor_ms,
            vision_floor_ms=choice.vision_floor_ms,
        )
        return Seen(frame.image, answer, stats)

    def _messages(self, picture: Any) -> list[dict[str, Any]]:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": self.prompt}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": content}]


def check_arguments(
    prompt: Any,
    *,
    system: Any = None,
    budget_ms: Any = None,
    share: Any = SHARE,
    frames: Any = None,
    retention: Any = RETENTIONS,
    **options: Any,
) -> RequestOptions:
    """The options of each request of `watch`, whose arguments these are; no model is needed.

    Raises:
        InvalidRequest: one is of another type or outside its range.
    """
    for name in _CHOSEN.keys() & options.keys():
        raise InvalidRequest(f"option {name} is not of single requests here: {_CHOSEN[name]}")
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt is of type {type(prompt).__name__}: expected a string, the question")
    if not isinstance(system, (str, NoneType)):
        raise InvalidRequest(f"system is of type {type(system).__name__}: expected a string, or None")
    if budget_ms is not None and not (_is_number(budget_ms) and budget_ms > 0):
        raise InvalidRequest(f"budget_ms {budget_ms!r:.60}: expected a number of milliseconds above 0, or None")
    if not (_is_number(share) and 0 < share < 1):
        raise InvalidRequest(f"share {share!r:.60}: expected a number between 0 and 1, such as 0.9")
    if frames is not None and not (isinstance(frames, int) and not isinstance(frames, bool) and frames > 0):
        raise InvalidRequest(f"frames {frames!r:.60}: expected at least 1, a whole number, or None")
    read_range(retention)
    return RequestOptions.of(options)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
