# SPDX-License-Identifier: Apache-2.0
"""Frames as cameras give them become pictures in RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.camera.frames import check_order, to_picture
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.image_reader import open_image

RGB = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
ALPHA = np.full((2, 5, 1), 7, np.uint8)


@pytest.mark.parametrize(
    ("frame", "order"),
    [
        (RGB, "rgb"),
        (RGB[..., ::-1], "bgr"),
        (np.concatenate([RGB, ALPHA], 2), "rgb"),
        (np.concatenate([RGB[..., ::-1], ALPHA], 2), "bgr"),
        (np.asfortranarray(RGB), "rgb"),
        (np.repeat(RGB, 2, axis=1)[:, ::2], "rgb"),
    ],
    ids=["rgb", "bgr", "rgba", "bgrx", "fortran", "strided"],
)
def test_colours_arrive_as_they_are(frame: Any, order: str) -> None:
    picture = to_picture(frame, order)
    np.testing.assert_array_equal(np.asarray(open_image(picture)), RGB)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("frame", [RGB[..., 0], RGB[..., :1]], ids=["2-d", "3-d"])
def test_grey_becomes_three_equal_channels(frame: Any, order: str) -> None:
    found = np.asarray(open_image(to_picture(frame, order)))
    np.testing.assert_array_equal(found, np.stack([RGB[..., 0]] * 3, axis=2))


def test_nothing_is_copied_where_nothing_moves() -> None:
    assert np.shares_memory(to_picture(RGB, "rgb"), RGB)
    assert to_picture(image := Image.fromarray(RGB), "bgr") is image
    assert to_picture(path := Path("frame.png"), "bgr") is path


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.zeros((4, 6, 3), np.float32), r"frame float32 \[4, 6, 3\]: expected uint8 .* 255"),
        (np.zeros((4, 6), np.uint16), r"frame uint16 \[4, 6\]: .*frame >> 8"),
        (np.zeros((3, 4, 6), np.uint8), r"frame uint8 \[3, 4, 6\]: .*frame.transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 6, 3), np.uint8), r"frame uint8 \[1, 4, 6, 3\]: .*one frame at a time"),
        (np.zeros((4, 6, 2), np.uint8), r"frame uint8 \[4, 6, 2\]: expected uint8 \[height, width\]"),
        (np.zeros(6, np.uint8), r"frame uint8 \[6\]: expected"),
    ],
)
def test_what_is_no_frame_is_refused_with_what_to_do(frame: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        to_picture(frame, "rgb")


def test_an_unknown_order_is_refused() -> None:
    assert check_order("bgr") == "bgr"
    with pytest.raises(InvalidRequest, match=r"^order 'gbr': expected one of rgb, bgr$"):
        check_order("gbr")
