# SPDX-License-Identifier: Apache-2.0
"""Videos in messages: frames of one source, sampled by number or by time, and how a prompt writes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from fastmmoe.runtime.errors import InvalidRequest

KEYS = ("type", "video", "num_frames", "fps")
EXPECTED = "{'type': 'video', 'video': list of pictures or of (stamp, picture)}"


@dataclass(frozen=True)
class VideoFrame:
    """A picture that is one of a video: it is one tile, whatever its size."""

    picture: Any


def read_video(part: Mapping[str, Any], name: str) -> list[tuple[bool, Any]]:
    """A message's part as texts, (False, text), and frames, (True, VideoFrame), in turn: "Frame1: ", the first, ...

    Args:
        part: {"type": "video", "video": frames}, and "num_frames" or "fps", see `sample_frames`.
        name: of the part, for errors.
    Raises:
        InvalidRequest: see `sample_frames`; its text follows the name.
    Source: load_video of InternVL's model card; processing_internvl.py of transformers.
    """
    try:
        pictures = sample_frames(part.get("video"), num_frames=part.get("num_frames"), fps=part.get("fps"))
    except InvalidRequest as error:
        raise InvalidRequest(f"{name}: {error}") from None
    # A picture is followed by a line break wherever it stands.
    named = enumerate(pictures, start=1)
    return [one for number, picture in named for one in ((False, f"Frame{number}: "), (True, VideoFrame(picture)))]


def sample_frames(frames: Any, *, num_frames: int | None = None, fps: float | None = None) -> list[Any]:
    """Some frames of a video, in order; all of them without a number or a rate.

    Args:
        frames: pictures as in `image_reader.Picture`, an array uint8 [n, height, width, 3], or pairs (stamp, picture)
            with stamps in seconds that do not fall.
        num_frames: so many: those in the middle of as many equal parts.
        fps: so many a second, at least one: of each equal part of the time what was to be seen in its middle. Needs
            stamps.
    Raises:
        InvalidRequest: frames, number or rate are not that, both are given, or there are fewer frames than are asked
            for.
    Source: sample_frames of video_processing_internvl.py of transformers, which knows of even stamps only.
    """
    pictures, stamps = _read_frames(frames)
    if num_frames is not None and fps is not None:
        raise InvalidRequest("a video has both num_frames and fps: give one")
    if num_frames is not None:
        if not isinstance(num_frames, (int, np.integer)) or isinstance(num_frames, bool) or num_frames < 1:
            raise InvalidRequest(f"num_frames {num_frames!r:.60}: expected at least 1, a whole number")
        _check_count(int(num_frames), len(pictures), f"num_frames {num_frames}")
        return [pictures[(2 * i + 1) * len(pictures) // (2 * int(num_frames))] for i in range(int(num_frames))]
    if fps is None:
        return pictures
    if not isinstance(fps, Real) or isinstance(fps, bool) or not (math.isfinite(fps) and fps > 0):
        raise InvalidRequest(f"fps {fps!r:.60}: expected a number of frames a second above 0")
    if stamps is None:
        raise InvalidRequest(f"fps {float(fps):g}: the frames have no times; give pairs (stamp, frame), or num_frames")
    return [pictures[i] for i in _at_rate(np.array(stamps), float(fps))]


def _at_rate(stamps: np.ndarray, fps: float) -> list[int]:
    """Numbers of the frames."""
    if len(stamps) == 1:
        return [0]
    # The last frame is seen for as long as the others are.
    seconds = (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1)
    count = max(1, math.floor(seconds * fps + 1e-6))
    _check_count(count, len(stamps), f"fps {fps:g}, {seconds:.2f} s")
    times = stamps[0] + (np.arange(count) + 0.5) * seconds / count
    # A stamp that a time meets exactly, but for rounding, has come.
    return [int(i) for i in np.searchsorted(stamps, times + 1e-9 * max(1.0, abs(stamps[-1])), side="right") - 1]


def _check_count(asked: int, there: int, name: str) -> None:
    if asked > there:
        raise InvalidRequest(f"{name}: the video has {there} frame(s), fewer than the {asked} that are asked for")


def _read_frames(frames: Any) -> tuple[list[Any], list[float] | None]:
    """The pictures, and their stamps where they have some."""
    is_array = isinstance(frames, np.ndarray) and frames.ndim == 4
    if not is_array and (isinstance(frames, (str, bytes)) or not isinstance(frames, Sequence)):
        found = (
            f"an array {list(frames.shape)}" if isinstance(frames, np.ndarray) else f"of type {type(frames).__name__}"
        )
        raise InvalidRequest(
            f"a video is {found}: expected a list of pictures or of (stamp, picture), or an array [n, height, width, "
            "3]; video files are not read, read their frames with OpenCV or PyAV"
        )
    listed = list(frames)
    if not listed:
        raise InvalidRequest("a video has no frames: expected at least one")
    pairs = [isinstance(one, tuple) and len(one) == 2 for one in listed]
    if not any(pairs):
        return listed, None
    stamps = [one[0] for one in listed if isinstance(one, tuple)]
    if not all(pairs) or not all(isinstance(stamp, Real) and math.isfinite(stamp) for stamp in stamps):
        raise InvalidRequest("a video has frames with a stamp and others without: expected seconds for each, or none")
    falls = next((i for i, (a, b) in enumerate(itertools.pairwise(stamps)) if b < a), None)
    if falls is not None:
        raise InvalidRequest(
            f"a video's stamp {stamps[falls + 1]} comes after {stamps[falls]}: expected rising seconds"
        )
    return [one[1] for one in listed], [float(stamp) for stamp in stamps]
