# SPDX-License-Identifier: Apache-2.0
"""The loop: what each frame is asked with, what is said of it, how it ends; without a bundle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.camera.loop import watch
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.scripted_camera import FakeClock, ScriptedVLM, run_loop

FRAME = np.zeros((64, 64, 3), np.uint8)
FRAME[..., 0] = 200


def paced(*frames: Any) -> Iterator[tuple[None, Any]]:
    """One after the other, as slowly as any test here asks."""
    for frame in frames:
        yield None, frame
        time.sleep(0.02)


def scripted() -> Any:
    return ScriptedVLM(FakeClock())


def test_no_delay_grows_over_two_thousand_frames() -> None:
    """The model takes several frames' time for one: the newest is asked about, the others are dropped."""
    stats = [seen.stats for seen in run_loop(scripted(), 300.0, 2000)]
    ages = np.array([one.age_ms for one in stats])
    assert ages.max() <= 1000 / 30 + 1e-6
    assert ages[-500:].mean() <= ages[:500].mean() + 5
    late = [one.answer_age_ms for one in stats[100:]]
    assert max(late) <= 300 + 1000 / 30
    assert all(one.dropped >= 1 for one in stats[100:])
    answered_and_dropped = sum(1 + one.dropped for one in stats)
    seconds = stats[-1].stamp - stats[0].stamp
    assert answered_and_dropped == round(seconds * 30) + 1


def test_what_is_said_of_a_frame() -> None:
    first, second = (seen.stats for seen in run_loop(scripted(), 500.0, 2))
    assert (first.number, first.age_ms, first.dropped, first.budget_ms) == (0, 0.0, 0, 500.0)
    assert second.number == 1
    assert second.answer_age_ms == pytest.approx(second.age_ms + second.latency_ms)
    assert second.stamp == pytest.approx(first.stamp + (1 + second.dropped) / 30)
    assert first.is_met is True and second.is_met is True and first.expected_ms is None


def test_without_a_budget_nothing_is_chosen() -> None:
    vlm = scripted()
    (seen, _) = run_loop(vlm, None, 2, max_tiles=3)
    assert (seen.stats.retention, seen.stats.tiles, vlm.asked[0][1]["max_tiles"]) == (1.0, 1, 3)
    assert seen.stats.budget_ms is seen.stats.is_met is seen.stats.limit is None
    (fixed,) = run_loop(scripted(), None, 1, retention=0.5)
    assert fixed.stats.retention == 0.5 and fixed.stats.tiles == 5


def test_one_retention_leaves_the_tiles_to_the_budget() -> None:
    last = run_loop(scripted(), 60.0, 20, retention=0.5)[-1].stats
    assert (last.retention, last.tiles, last.limit) == (0.5, 1, "tiles")


def test_what_the_model_is_asked() -> None:
    vlm = scripted()
    frames = list(
        watch(vlm, paced(FRAME[..., ::-1]), "A cup?", order="bgr", system="Look.", max_new_tokens=3, method="fastmmoe")
    )
    ((messages, options),) = vlm.asked
    assert messages[0] == {"role": "system", "content": "Look."}
    picture, question = messages[1]["content"]
    assert np.array_equal(picture["image"], FRAME) and question == {"type": "text", "text": "A cup?"}
    assert options == {"max_new_tokens": 3, "method": "fastmmoe", "retention": 1.0, "max_tiles": 7}
    assert frames[0].text == "yes" and frames[0].image[0, 0, 2] == 200


def test_it_ends_with_its_source_or_after_so_many_frames() -> None:
    assert len(list(watch(scripted(), paced(*[FRAME] * 3), "?"))) >= 1
    assert len(list(watch(scripted(), paced(*[FRAME] * 50), "?", frames=2))) == 2
    assert list(watch(scripted(), [], "?")) == []


def test_an_error_of_the_source_arrives() -> None:
    def failing() -> Iterator[tuple[None, Any]]:
        yield None, FRAME
        raise OSError("the camera was unplugged")

    answered: list[str] = []
    with pytest.raises(OSError, match=r"^the camera was unplugged$"):
        answered.extend(seen.text for seen in watch(scripted(), failing(), "?"))
    assert answered == ["yes"]


def test_a_frame_that_is_none_ends_the_loop_and_its_thread() -> None:
    with pytest.raises(InvalidRequest, match=r"^frame float64 \[64, 64, 3\]"):
        list(watch(scripted(), paced(FRAME / 255), "?"))
    assert "fastmmoe-camera" not in {thread.name for thread in threading.enumerate()}


def test_a_caller_that_leaves_closes_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[tuple[None, Any]]:
        try:
            while True:
                yield None, FRAME
                time.sleep(0.005)
        finally:
            closed.set()

    answers = watch(scripted(), endless(), "?")
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert "fastmmoe-camera" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": 3}, "prompt is of type int: expected a string"),
        ({"system": 3}, "system is of type int"),
        ({"budget_ms": 0}, "budget_ms 0: expected a number of milliseconds above 0"),
        ({"budget_ms": float("nan")}, "budget_ms nan"),
        ({"budget_ms": True}, "budget_ms True"),
        ({"share": 1}, "share 1: expected a number between 0 and 1"),
        ({"frames": 0}, "frames 0: expected at least 1"),
        ({"frames": 2.5}, "frames 2.5"),
        ({"order": "gbr"}, "order 'gbr'"),
        ({"retention": 2}, "retention 2: expected a number in"),
        ({"pruning_rate": 0.5}, "option pruning_rate is not of single requests here: watch takes retention="),
        ({"max_tokens": 3}, "option max_tokens is called max_new_tokens here"),
        ({"max_tiles": 0}, "max_tiles 0"),
    ],
)
def test_wrong_arguments_are_refused_before_the_source_is_read(arguments: dict[str, Any], said: str) -> None:
    def untouched() -> Iterator[Any]:
        raise AssertionError("the source was read")
        yield

    with pytest.raises(InvalidRequest, match=said):
        watch(scripted(), untouched(), **{"prompt": "?", **arguments})
