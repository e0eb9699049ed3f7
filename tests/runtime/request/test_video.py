# SPDX-License-Identifier: Apache-2.0
"""Videos in messages: which frames are taken, and how a prompt writes them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.prompts import Marker, render_follow_up, render_prompt
from fastmmoe.runtime.request.video import VideoFrame, read_video, sample_frames
from tests.support.processors import MakeProcessor


def stamped(count: int, fps: float = 10.0, start: float = 5.0) -> list[tuple[float, int]]:
    return [(start + number / fps, number) for number in range(count)]


@pytest.mark.parametrize(("count", "asked"), [(10, 1), (10, 3), (10, 10), (7, 4), (1, 1), (100, 8), (101, 32)])
def test_by_number_the_middles_of_equal_parts(count: int, asked: int) -> None:
    expected = [int((Fraction(2 * i + 1, 2)) * Fraction(count, asked)) for i in range(asked)]
    assert sample_frames(range(count), num_frames=asked) == expected
    assert sample_frames(stamped(count), num_frames=asked) == expected


@pytest.mark.parametrize(
    ("count", "fps", "asked"), [(30, 10.0, 2.0), (100, 30.0, 1.0), (64, 10.0, 10.0), (3, 10.0, 0.5)]
)
def test_by_rate_of_even_stamps_as_by_number(count: int, fps: float, asked: float) -> None:
    frames = stamped(count, fps)
    number = max(1, int(count / fps * asked + 1e-9))
    assert sample_frames(frames, fps=asked) == sample_frames(frames, num_frames=number)


def test_by_rate_of_uneven_stamps_what_was_to_be_seen() -> None:
    """Four frames in the first second, then none until the fifth: 6.25 s with the last one's time."""
    frames = [(0.0, "a"), (0.25, "b"), (0.5, "c"), (0.75, "d"), (5.0, "e")]
    assert sample_frames(frames, fps=0.48) == ["d", "d", "e"]
    assert sample_frames([(3.0, "a")], fps=2.0) == ["a"]


def test_without_a_number_all_frames_of_a_list_or_an_array() -> None:
    array = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    assert sample_frames(["a", "b"]) == ["a", "b"] and sample_frames(stamped(2)) == [0, 1]
    found = sample_frames(array)
    assert len(found) == 2 and np.array_equal(found[1], array[1])


@pytest.mark.parametrize(
    ("frames", "options", "said"),
    [
        ("a.mp4", {}, "a video is of type str: expected a list .*video files are not read"),
        (None, {}, "a video is of type NoneType"),
        (np.zeros((3, 4, 3), np.uint8), {}, r"a video is an array \[3, 4, 3\]: expected"),
        ([], {}, "a video has no frames"),
        ([(0.0, "a"), "b"], {}, "frames with a stamp and others without"),
        ([(float("nan"), "a")], {}, "frames with a stamp and others without"),
        ([(1.0, "a"), (0.5, "b")], {}, "a video's stamp 0.5 comes after 1.0"),
        (["a"], {"num_frames": 2}, r"num_frames 2: the video has 1 frame\(s\), fewer than the 2"),
        (["a"], {"num_frames": 0}, "num_frames 0: expected at least 1"),
        (["a"], {"num_frames": 1.5}, "num_frames 1.5: expected"),
        (["a"], {"num_frames": True}, "num_frames True: expected"),
        (["a"], {"fps": 2}, r"fps 2: the frames have no times; give pairs \(stamp, frame\), or num_frames"),
        (stamped(5), {"fps": -1}, "fps -1: expected"),
        (stamped(5), {"fps": 60}, r"fps 60, 0.50 s: the video has 5 frame\(s\), fewer than the 30"),
        (stamped(5), {"fps": 1, "num_frames": 2}, "both num_frames and fps: give one"),
    ],
)
def test_what_is_no_video(frames: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        sample_frames(frames, **options)
    with pytest.raises(InvalidRequest, match=f"^part: .*{said}"):
        read_video({"type": "video", "video": frames, **options}, "part")


VIDEO = {"type": "video", "video": ["a", "b", "c", "d"], "num_frames": 2}
QUESTION = [VIDEO, {"type": "text", "text": "What moves?"}]


@pytest.mark.parametrize("template", ["internvl2_5", "internvl3_5_gpt_oss"])
def test_a_prompt_writes_frames_as_internvl_does(template: str) -> None:
    """Frame1: <image>, line break, Frame2: <image>, line break, the question."""
    expected = ("Frame1: ", Marker.IMAGE, "\nFrame2: ", Marker.IMAGE, "\nWhat moves?")
    for prompt in (
        render_prompt([{"role": "user", "content": QUESTION}], template),
        render_follow_up(QUESTION, template),
    ):
        at = next(i for i, piece in enumerate(prompt.pieces) if piece is Marker.IMAGE)
        first = prompt.pieces[at - 1]
        assert isinstance(first, str) and first.endswith(expected[0])
        assert prompt.pieces[at : at + 3] == expected[1:4]
        last = prompt.pieces[at + 3]
        assert isinstance(last, str) and last.startswith(expected[4])
        assert prompt.images == (VideoFrame("b"), VideoFrame("d"))


def test_a_frame_is_one_tile_beside_pictures_of_many(processor: MakeProcessor) -> None:
    make = processor("internvl-qwen3moe")
    side = make.config.tile_size
    wide = np.random.default_rng(0).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": wide},
        {"type": "video", "video": np.stack([wide, wide])},
        {"type": "text", "text": "?"},
    ]
    found = make([{"role": "user", "content": parts}])
    assert found.tile_counts == (3, 1, 1)
    pixels = found.vision_inputs["pixel_values"]
    # A frame is the whole picture in one tile: what a thumbnail is.
    np.testing.assert_array_equal(pixels[3], pixels[2])
    np.testing.assert_array_equal(pixels[4], pixels[2])
    written = [*make.encode(["Frame1: "])]
    ids = found.input_ids.tolist()
    assert any(ids[i : i + len(written)] == written for i in range(len(ids)))


def test_a_family_without_videos_says_what_to_give(processor: MakeProcessor) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    parts = [{"type": "video", "video": [picture]}, {"type": "text", "text": "?"}]
    with pytest.raises(InvalidRequest, match=r"hold a video: deepseek_vl2 knows none; give its frames as pictures"):
        processor("dsvl2-mha")([{"role": "user", "content": parts}])
