# SPDX-License-Identifier: Apache-2.0
"""Pixels of tiles, as every family takes them, and the places of visual tokens in a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import Rgb
from fastmmoe.runtime.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PictureMap:
    """Where the visual tokens of a prompt with one picture stand.

    Attributes:
        side: rows and columns of one tile's grid of cells.
        pitch: pixels between two cells; the last ones of a row may reach beyond the tile.
        cells: int [V], the cell that each visual token shows, tile * side^2 + cell; -1 = none (newline, separator).
        views: the visual token at every place [rows, columns] of each view of the picture, -1 = none.
    """

    side: int
    pitch: int
    cells: Array
    views: Mapping[str, Array]


def check_max_tiles(max_tiles: int | None, minimum: int) -> int | None:
    """Return it unchanged; InvalidRequest if it is below the fewest tiles that a picture is cut into."""
    if max_tiles is not None and max_tiles < minimum:
        raise InvalidRequest(f"max_tiles {max_tiles}: expected at least {minimum} local tile(s) per picture")
    return max_tiles


def padded(image: Image, size: tuple[int, int], color: tuple[int, int, int]) -> Image:
    """The picture at the greatest size that fits, in the middle of a background of this colour."""
    from PIL import ImageOps

    return ImageOps.pad(image, size, color=color)


def normalisation_table(mean: Rgb, std: Rgb) -> Pixels:
    """float32 [3, 256]: (x / 255 - mean) / std of every value of a channel, computed in float32."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def normalise(image: Image, table: Pixels, out: Pixels) -> None:
    """Cut the picture row by row into the tiles `out` [n, 3, S, S] and look every value up."""
    array = np.asarray(image)
    side = out.shape[-1]
    wide = array.shape[1] // side
    for index, tile in enumerate(out):
        y, x = index // wide * side, index % wide * side
        for channel in range(3):
            # "clip" lets NumPy write to `out` without a buffer; no uint8 is out of range.
            np.take(table[channel], array[y : y + side, x : x + side, channel], out=tile[channel], mode="clip")


def stack_tiles(tiles: Iterable[Pixels], counts: Sequence[int], side: int) -> Pixels:
    """[sum of counts, 3, S, S] from the tiles of each picture, of which no two exist at a time."""
    pixels = np.empty((sum(counts), 3, side, side), np.float32)
    start = 0
    for one, count in zip(tiles, counts, strict=True):
        pixels[start : start + count] = one
        start += count
    return pixels
