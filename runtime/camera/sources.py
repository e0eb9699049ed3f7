# SPDX-License-Identifier: Apache-2.0
"""Sources of frames: files that are played, drawn scenes in which things move, and cameras by OpenCV."""

from __future__ import annotations

import glob
import importlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastmmoe.runtime.camera.frames import BGR, RGB
from fastmmoe.runtime.camera.reader import Clock
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.image_reader import open_image

if TYPE_CHECKING:
    from fastmmoe.runtime.camera.drawing import Thing

Source: TypeAlias = Iterator[tuple[float, Any]]
SYNTHETIC = "SYNTHETIC"
"""The name of the drawn source."""
SYNTHETIC_FPS = 30.0
SYNTHETIC_SECONDS = 2.0
"""After which the drawn scene repeats itself."""

_DEVICE = re.compile(r"/dev/video(\d+)|(\d+)")
_ADDRESS = re.compile(r"(rtsp|rtmp|https?|udp)://", re.IGNORECASE)
_PLACES = ((0.25, 0.3), (0.7, 0.28), (0.3, 0.72), (0.74, 0.7))
_THINGS = (("red", "cube"), ("blue", "ball"), ("green", "star"), ("yellow", "mug"))


def open_source(name: str, fps: float | None = None) -> tuple[Source, str]:
    """The source of a name, and the order of its arrays' colours.

    Args:
        name: SYNTHETIC; /dev/videoN, its number, an address such as rtsp://..., or a pipeline of GStreamer that ends
            in an appsink, for OpenCV; else a pattern of picture files.
        fps: frames a second of the first and the last; None = 30.
    Raises:
        InvalidRequest: no file has this pattern, fps is not above 0, OpenCV is not installed or opens nothing.
    """
    rate = SYNTHETIC_FPS if fps is None else fps
    if not (math.isfinite(rate) and rate > 0):
        raise InvalidRequest(f"fps {rate:g}: expected a number of frames a second above 0")
    if name == SYNTHETIC:
        return play(draw_moving(rate), rate, is_endless=True), RGB
    if "!" in name or _DEVICE.fullmatch(name) or _ADDRESS.match(name):
        if fps is not None:
            raise InvalidRequest(f"fps {fps:g}: a camera has its own; set it in a pipeline of GStreamer")
        return capture(name), BGR
    files = sorted(glob.glob(name))  # noqa: PTH207  (a pattern may be absolute)
    if not files:
        raise InvalidRequest(
            f"source {name!r:.200}: no file has this pattern; expected a pattern of picture files such as "
            f"'frames/*.png', a camera such as /dev/video0, or {SYNTHETIC}"
        )
    return play((open_image(Path(file)) for file in files), rate), RGB


def play(
    frames: Iterable[Any],
    fps: float,
    *,
    is_endless: bool = False,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Source:
    """The frames, each at its time from the first on; those whose time has passed come at once.

    Args:
        is_endless: after the last comes the first; of a sequence.
    """
    start, number = clock(), 0
    while True:
        for frame in frames:
            wait = start + number / fps - clock()
            if wait > 0:
                sleep(wait)
            yield start + number / fps, frame
            number += 1
        if not is_endless:
            return


def draw_moving(fps: float = SYNTHETIC_FPS) -> Sequence[Any]:
    """SYNTHETIC_SECONDS of a table top on which four things go round, uint8 [160, 160, 3] RGB each.

    They are drawn before the first is shown: drawing takes as long as a small model's vision does.
    """
    from fastmmoe.runtime.camera.drawing import draw_table_top

    count = max(1, round(SYNTHETIC_SECONDS * fps))
    # The same table, light and noise in every picture.
    return [
        np.asarray(draw_table_top(_things_at(number / count), None, np.random.default_rng(0)))
        for number in range(count)
    ]


def _things_at(turn: float) -> list[Thing]:
    from fastmmoe.runtime.camera.drawing import SIZE, Thing

    things = []
    for i, ((x, y), (color, shape)) in enumerate(zip(_PLACES, _THINGS, strict=True)):
        angle = 2 * math.pi * (turn + i / len(_PLACES))
        things.append(
            Thing(color, shape, SIZE * (x + 0.08 * math.cos(angle)), SIZE * (y + 0.08 * math.sin(angle)), 16.0, 0.1)
        )
    return sorted(things, key=lambda thing: thing.y)


def capture(name: str) -> Source:
    """Frames of a camera by OpenCV, uint8 in BGR, with the time at which each was read.

    Args:
        name: /dev/videoN, its number, an address, or a pipeline of GStreamer that ends in an appsink.
    Raises:
        InvalidRequest: OpenCV is not installed or opens nothing; later, that it gives no frame at all.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"source {name!r:.200} needs OpenCV: pip install opencv-python-headless, or for pipelines of GStreamer a "
            "build that has it, as JetPack's"
        ) from error
    device = _DEVICE.fullmatch(name)
    if device:
        opened = cv2.VideoCapture(int(device[1] or device[2]), cv2.CAP_V4L2)
    else:
        opened = cv2.VideoCapture(name, cv2.CAP_GSTREAMER if "!" in name else cv2.CAP_ANY)
    if not opened.isOpened():
        opened.release()
        advice = "; see that OpenCV has GStreamer (cv2.getBuildInformation())" if "!" in name else ""
        raise InvalidRequest(f"source {name!r:.200}: OpenCV cannot open it{advice}")
    return _read(opened, name)


def _read(opened: Any, name: str) -> Source:
    has_any = False
    try:
        while True:
            is_read, frame = opened.read()
            if not is_read:
                break
            has_any = True
            yield time.monotonic(), frame
    finally:
        opened.release()
    if not has_any:
        raise InvalidRequest(f"source {name!r:.200}: OpenCV opens it and reads no frame")
