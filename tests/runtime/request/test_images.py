# SPDX-License-Identifier: Apache-2.0
"""Pixels of tiles: bounds of their number, normalisation, order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request import deepseek_vl2
from fastmmoe.runtime.request import internvl as internvl3_5
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig
from fastmmoe.runtime.request.image_reader import open_image
from fastmmoe.runtime.request.images import (
    Pixels,
    check_max_tiles,
    normalisation_table,
    normalise,
    padded,
    stack_tiles,
)
from tests.support.model_inputs import TOLERANCE


@pytest.mark.parametrize("family", ["deepseek", "internvl"])
def test_every_value_is_normalised_as_in_float32(
    family: str, deepseek: DeepseekVl2ProcessorConfig, internvl: InternVlProcessorConfig
) -> None:
    config: Any = {"deepseek": deepseek, "internvl": internvl}[family]
    side = config.tile_size
    values = np.resize(np.arange(256, dtype=np.uint8), (side, side))
    array = np.stack([values, values[::-1], values.T], axis=-1)
    image = open_image(array)
    if family == "deepseek":
        pixels = deepseek_vl2.cut_tiles(image, config, tiled=False)[0][0]
    else:
        pixels = internvl3_5.cut_tiles(image, config, max_tiles=1)[0]
    expected = (array.astype(np.float64) / 255 - config.image_mean) / config.image_std
    np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("max_tiles", "minimum"), [(None, 3), (3, 3), (1, 1), (100, 1)])
def test_numbers_of_tiles_that_are_taken(max_tiles: int | None, minimum: int) -> None:
    assert check_max_tiles(max_tiles, minimum) == max_tiles


@pytest.mark.parametrize(("max_tiles", "minimum"), [(0, 1), (2, 3), (-1, 1)])
def test_numbers_of_tiles_that_are_refused(max_tiles: int, minimum: int) -> None:
    words = rf"^max_tiles {max_tiles}: expected at least {minimum} local tile\(s\) per picture$"
    with pytest.raises(InvalidRequest, match=words):
        check_max_tiles(max_tiles, minimum)


def test_the_table_by_hand() -> None:
    table = normalisation_table((0.0, 0.5, 1.0), (1.0, 0.25, 2.0))
    assert (table.shape, table.dtype) == ((3, 256), np.float32)
    assert table[:, [0, 255]].tolist() == [[0, 1], [-2, 2], [-0.5, 0]]
    np.testing.assert_allclose(table[1, 51], (0.2 - 0.5) / 0.25, rtol=0, atol=TOLERANCE)


def test_tiles_are_cut_row_by_row() -> None:
    """Two rows of three tiles of 2 x 2 pixels; each pixel holds 10 times its row and its column."""
    values = np.add.outer(np.arange(4) * 10, np.arange(6)).astype(np.uint8)
    image = Image.fromarray(np.stack([values, values + 100, values + 200], axis=-1))
    out = np.full((6, 3, 2, 2), np.nan, np.float32)
    normalise(image, np.arange(256, dtype=np.float32)[None].repeat(3, axis=0), out)
    assert out[:, 0, 0, 0].tolist() == [0, 2, 4, 20, 22, 24]
    assert out[4].tolist() == [[[22 + c, 23 + c], [32 + c, 33 + c]] for c in (0, 100, 200)]


@pytest.mark.parametrize(
    ("size", "box"), [((40, 20), (0, 5, 20, 15)), ((20, 40), (5, 0, 15, 20)), ((4, 2), (0, 5, 20, 15))]
)
def test_a_picture_stands_in_the_middle(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    found = np.asarray(padded(Image.new("RGB", size, (9, 9, 9)), (20, 20), (1, 2, 3)))
    left, top, right, bottom = box
    inside = np.zeros((20, 20), bool)
    inside[top:bottom, left:right] = True
    assert (found[inside] == 9).all() and (found[~inside] == (1, 2, 3)).all()


def test_tiles_of_pictures_are_made_one_at_a_time() -> None:
    made: list[int] = []

    def tiles() -> Iterator[Pixels]:
        for value, count in ((1, 2), (2, 1)):
            made.append(value)
            yield np.full((count, 3, 4, 4), value, np.float32)

    stacked = stack_tiles(tiles(), [2, 1], 4)
    assert stacked[:, 0, 0, 0].tolist() == [1, 1, 2] and made == [1, 2]
    with pytest.raises(ValueError, match="longer than"):
        stack_tiles(tiles(), [2, 1, 1], 4)
    assert stack_tiles(iter([]), [], 4).shape == (0, 3, 4, 4)
