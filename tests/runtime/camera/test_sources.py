# SPDX-License-Identifier: Apache-2.0
"""Sources by their names: files, drawn scenes, and cameras through a stand-in for OpenCV."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.camera import sources
from fastmmoe.runtime.camera.sources import SYNTHETIC, capture, draw_moving, open_source, play
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.scripted_camera import FakeClock

FRAME = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


class FakeCapture:
    """A camera of OpenCV's that gives so many frames."""

    def __init__(self, frames: int, is_opened: bool = True) -> None:
        self._frames, self._is_opened = iter([FRAME] * frames), is_opened
        self.asked: list[Any] = []
        self.is_released = False

    def __call__(self, *asked: Any) -> FakeCapture:
        self.asked.append(asked)
        return self

    def isOpened(self) -> bool:  # noqa: N802  (OpenCV's name)
        return self._is_opened

    def read(self) -> tuple[bool, Any]:
        frame = next(self._frames, None)
        return frame is not None, frame

    def release(self) -> None:
        self.is_released = True


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function (capture) -> it takes the place of cv2.VideoCapture."""

    def install(fake: FakeCapture) -> FakeCapture:
        module: Any = SimpleNamespace(VideoCapture=fake, CAP_V4L2="v4l2", CAP_GSTREAMER="gstreamer", CAP_ANY="any")
        monkeypatch.setitem(sys.modules, "cv2", module)
        return fake

    return install


def slept() -> tuple[FakeClock, list[float], Any]:
    clock, waits = FakeClock(), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    return clock, waits, sleep


def test_files_are_played_at_their_rate() -> None:
    clock, waits, sleep = slept()
    found = list(play(iter("abc"), 10, clock=clock, sleep=sleep))
    assert [frame for _, frame in found] == ["a", "b", "c"]
    assert [stamp for stamp, _ in found] == pytest.approx([100.0, 100.1, 100.2])
    assert waits == pytest.approx([0.1, 0.1])


def test_a_file_that_took_long_delays_no_other() -> None:
    clock, waits, sleep = slept()

    def slow() -> Any:
        yield "a"
        clock.now += 0.25
        yield "b"
        yield "c"
        yield "d"

    stamps = [stamp for stamp, _ in play(slow(), 10, clock=clock, sleep=sleep)]
    assert stamps == pytest.approx([100.0, 100.1, 100.2, 100.3]) and waits == pytest.approx([0.05])


def test_an_endless_source_begins_again() -> None:
    clock, _, sleep = slept()
    found = [f for _, f in itertools.islice(play("ab", 10, is_endless=True, clock=clock, sleep=sleep), 5)]
    assert found == ["a", "b", "a", "b", "a"]


def test_a_pattern_of_files(tmp_path: Path) -> None:
    for name, level in (("2.png", 20), ("1.png", 10), ("10.txt", 0)):
        if name.endswith("png"):
            Image.new("RGB", (3, 2), (level, 0, 0)).save(tmp_path / name)
    source, order = open_source(str(tmp_path / "*.png"), fps=1000)
    assert order == "rgb" and [np.asarray(frame)[0, 0, 0] for _, frame in source] == [10, 20]


def test_a_damaged_file_ends_the_source_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    source, _ = open_source(str(tmp_path / "*.png"), fps=1000)
    with pytest.raises(InvalidRequest, match=r"1\.png: cannot identify image file"):
        list(source)


def test_drawn_scenes_move_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SYNTHETIC_SECONDS", 0.2)
    frames = draw_moving(30)
    assert len(frames) == 6 and all(frame.shape == (160, 160, 3) and frame.dtype == np.uint8 for frame in frames)
    moved = [np.abs(a.astype(int) - b).max(axis=2) > 40 for a, b in itertools.pairwise(frames)]
    assert all(0.001 < change.mean() < 0.3 for change in moved)
    source, order = open_source(SYNTHETIC, fps=200)
    played = [frame for _, frame in itertools.islice(source, 50)]
    assert order == "rgb" and np.array_equal(played[0], played[40]) and not np.array_equal(played[0], played[20])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("/dev/video2", (2, "v4l2")),
        ("0", (0, "v4l2")),
        ("videotestsrc ! appsink", ("videotestsrc ! appsink", "gstreamer")),
        ("rtsp://camera/1", ("rtsp://camera/1", "any")),
    ],
)
def test_cameras_are_opened_by_opencv(name: str, asked: Any, opencv: Any) -> None:
    fake = opencv(FakeCapture(2))
    source, order = open_source(name)
    frames = list(source)
    assert fake.asked == [asked] and order == "bgr" and fake.is_released
    assert len(frames) == 2 and np.array_equal(frames[0][1], FRAME) and frames[0][0] <= frames[1][0]


def test_a_camera_that_is_left_is_released(opencv: Any) -> None:
    fake = opencv(FakeCapture(2))
    source: Any = capture("0")
    next(source)
    source.close()
    assert fake.is_released


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (FakeCapture(0, is_opened=False), r"^source '0': OpenCV cannot open it$"),
        (FakeCapture(0), r"^source '0': OpenCV opens it and reads no frame$"),
    ],
)
def test_cameras_that_are_none(fake: FakeCapture, said: str, opencv: Any) -> None:
    opencv(fake)
    with pytest.raises(InvalidRequest, match=said):
        list(capture("0"))
    assert fake.is_released


def test_a_pipeline_that_opencv_was_not_built_for(opencv: Any) -> None:
    opencv(FakeCapture(0, is_opened=False))
    with pytest.raises(InvalidRequest, match="see that OpenCV has GStreamer"):
        capture("videotestsrc ! appsink")


def test_without_opencv_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InvalidRequest, match=r"^source '/dev/video0' needs OpenCV: pip install opencv-python-headless"):
        open_source("/dev/video0")


@pytest.mark.parametrize(
    ("name", "fps", "said"),
    [
        ("/nowhere/*.png", None, "no file has this pattern; expected a pattern of picture files"),
        (SYNTHETIC, 0.0, "^fps 0: expected"),
        (SYNTHETIC, float("nan"), "^fps nan: expected"),
        ("/dev/video0", 15.0, "^fps 15: a camera has its own"),
    ],
)
def test_what_is_no_source(name: str, fps: float | None, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        open_source(name, fps)
