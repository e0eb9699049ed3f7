# SPDX-License-Identifier: Apache-2.0
"""The thread that keeps the newest frame: what is dropped, how it ends, and whose errors arrive where."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fastmmoe.runtime.camera import reader
from fastmmoe.runtime.camera.reader import NewestFrame
from fastmmoe.runtime.errors import InvalidRequest

SECONDS = 20
"""More than anything here takes; what hangs fails rather than blocks."""


class Gated:
    """A source that gives a frame for each permit."""

    def __init__(self, frames: list[Any], error: BaseException | None = None) -> None:
        self.frames, self.error = frames, error
        self.permits, self.asked, self.closed = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def __iter__(self) -> Iterator[Any]:
        try:
            for frame in self.frames:
                self.asked.release()
                self.permits.acquire()
                yield frame
            self.asked.release()
            self.permits.acquire()
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()

    def give(self, count: int) -> None:
        """So many frames; returns once the last has been kept."""
        for _ in range(count):
            assert self.asked.acquire(timeout=SECONDS)
            self.permits.release()
        # The next frame is asked for once this one is kept.
        assert self.asked.acquire(timeout=SECONDS)
        self.asked.release()


def stamped(*names: str) -> list[Any]:
    return [(None, name) for name in names]


def test_the_newest_frame_is_taken_and_the_others_are_counted() -> None:
    source = Gated(stamped("a", "b", "c", "d"))
    with NewestFrame(source) as frames:
        source.give(3)
        first = frames.take()
        source.give(1)
        second = frames.take()
    assert first is not None and second is not None
    assert (first.image, first.dropped, second.image, second.dropped) == ("c", 2, "d", 0)


def test_a_frame_is_waited_for() -> None:
    source = Gated(stamped("a"))
    with NewestFrame(source) as frames:
        timer = threading.Timer(0.05, source.give, (1,))
        timer.start()
        frame = frames.take()
        timer.join()
    assert frame is not None and frame.image == "a"


def test_a_source_that_ends() -> None:
    source = Gated(stamped("a", "b"))
    with NewestFrame(source) as frames:
        source.give(2)
        source.permits.release()
        assert source.closed.wait(SECONDS)
        last = frames.take()
        assert last is not None and last.image == "b"
        assert frames.take() is None and frames.take() is None


def test_no_frames_at_all() -> None:
    with NewestFrame([]) as frames:
        assert frames.take() is None


@pytest.mark.parametrize("error", [OSError("the camera was unplugged"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_the_source_arrives_after_its_last_frame_once(error: BaseException) -> None:
    source = Gated(stamped("a"), error)
    with NewestFrame(source) as frames:
        source.give(1)
        source.permits.release()
        assert source.closed.wait(SECONDS)
        last = frames.take()
        assert last is not None and last.image == "a"
        with pytest.raises(type(error)) as caught:
            frames.take()
        assert caught.value is error
        assert frames.take() is None


def test_closing_ends_the_thread_and_the_source() -> None:
    source = Gated(stamped("a", "b", "c"))
    frames = NewestFrame(source)
    source.give(1)
    timer = threading.Timer(0.05, source.permits.release)
    timer.start()
    frames.close()
    assert source.closed.is_set() and not frames._thread.is_alive()
    assert frames.take() is None


def test_a_source_with_a_close_of_its_own_is_closed() -> None:
    class Camera:
        is_closed = False

        def __iter__(self) -> Camera:
            return self

        def __next__(self) -> tuple[None, str]:
            raise StopIteration

        def close(self) -> None:
            self.is_closed = True

    camera = Camera()
    with NewestFrame(camera) as frames:
        assert frames.take() is None
    assert camera.is_closed


def test_a_source_that_hangs_does_not_keep_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.05)
    source = Gated(stamped("a"))
    frames = NewestFrame(source)
    frames.close()
    assert frames.take() is None
    assert frames._thread.daemon and frames._thread.is_alive()
    source.permits.release()


def test_stamps_are_kept_or_given() -> None:
    with NewestFrame([(12.25, "a")], clock=lambda: 12.5) as frames:
        given = frames.take()
    with NewestFrame([(None, "a")], clock=lambda: 12.5) as frames:
        made = frames.take()
    assert given is not None and made is not None
    assert (given.stamp, made.stamp) == (12.25, 12.5)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("ab", "gave a value of type str: expected pairs"),
        ((1.0, "a", "b"), "gave a value of type tuple: expected pairs"),
        (("now", "a"), "the stamp 'now': expected seconds, or None"),
        ((True, "a"), "the stamp True: expected seconds"),
        ((float("nan"), "a"), "the stamp nan: expected seconds"),
        ((1.7e9, "a"), r"the stamp 1700000000.000, 1699999900 s after the clock's 100.000: .*clock="),
        ((-4000.0, "a"), "4100 s before the clock's"),
    ],
)
def test_what_is_no_pair_is_refused_where_frames_are_taken(item: Any, said: str) -> None:
    with NewestFrame([item], clock=lambda: 100.0) as frames, pytest.raises(InvalidRequest, match=said):
        frames.take()


def test_what_gives_nothing_one_by_one() -> None:
    with pytest.raises(InvalidRequest, match=r"^source is of type int: expected an iterator of pairs"):
        NewestFrame(3)  # type: ignore[arg-type]
