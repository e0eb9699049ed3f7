# SPDX-License-Identifier: Apache-2.0
"""Pictures to tiles as the official processors cut them, with Pillow and NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, Rgb

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = npt.NDArray[np.float32]


def select_best_resolution(size: tuple[int, int], candidates: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The candidate that keeps the most pixels of a picture, and among those the one that wastes least.

    Args:
        size: (width, height) of the picture. candidates: (width, height); the earlier wins a tie.
    Source: select_best_resolution of DeepSeek-VL2. A picture so thin that nothing of it is left in any candidate,
        for which that function has no answer, gets the first.
    """
    width, height = size
    best, best_rank = candidates[0], (0, 0)
    for candidate in candidates:
        # float64 and truncation as there: 767.99... is 767.
        scale = min(candidate[0] / width, candidate[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        rank = (effective, effective - candidate[0] * candidate[1])
        if rank > best_rank:
            best, best_rank = candidate, rank
    return best


def select_grid(size: tuple[int, int], min_tiles: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """(columns, rows) of InternVL's local tiles: the grid whose aspect ratio is nearest to the picture's.

    On an exact tie the larger grid wins if the picture has more than half of that grid's pixels.

    Source: dynamic_preprocess and find_closest_aspect_ratio of InternVL.
    """
    sides = range(1, max_tiles + 1)
    grids = [(c, r) for c in sides for r in range(1, max_tiles // c + 1) if c * r >= min_tiles]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    width, height = size
    best, best_difference = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        is_large = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and is_large):
            best, best_difference = (columns, rows), difference
    return best


def deepseek_vl2_grid(
    size: tuple[int, int], config: DeepseekVl2ProcessorConfig, *, tiled: bool, max_tiles: int | None = None
) -> tuple[int, int]:
    """(tiles_wide, tiles_high) of a picture of this size; arguments and errors: `deepseek_vl2_tiles`."""
    side = config.tile_size
    limit = _check_max_tiles(max_tiles, 1)
    candidates = [c for c in config.candidate_resolutions if limit is None or c[0] * c[1] <= limit * side * side]
    resolution = select_best_resolution(size, candidates) if tiled else (side, side)
    width, height = size
    for view in ((side, side), resolution):
        # The shorter side rounds to 0 pixels, which Pillow cannot resize to.
        if round(min(width / height * view[1], height / width * view[0])) < 1:
            raise InvalidRequest(
                f"image of {width}x{height} pixels: too thin to fit into {view[0]}x{view[1]} pixels; crop it"
            )
    return resolution[0] // side, resolution[1] // side


def deepseek_vl2_tiles(
    image: Image, config: DeepseekVl2ProcessorConfig, *, tiled: bool, max_tiles: int | None = None
) -> tuple[Pixels, tuple[int, int]]:
    """The tiles of one picture: the global view, then the local view's tiles row by row.

    Args:
        image: RGB. tiled: choose a local view that fits; False = one local tile, equal to the global one.
        max_tiles: the most local tiles; None = as many as the largest candidate has.
    Returns:
        pixels [1 + tiles_wide * tiles_high, 3, S, S] float32, normalised, and (tiles_wide, tiles_high).
    Raises:
        InvalidRequest: max_tiles is below 1, or the picture is too thin to be padded to a tile.
    Source: tokenize_with_images of DeepSeek-VL2's processor.
    """
    side = config.tile_size
    wide, high = deepseek_vl2_grid(image.size, config, tiled=tiled, max_tiles=max_tiles)
    pixels = np.empty((1 + wide * high, 3, side, side), np.float32)
    table = _normalisation_table(config.image_mean, config.image_std)
    _normalise(_padded(image, (side, side), config.pad_color), table, pixels[:1])
    if (wide, high) == (1, 1):
        pixels[1] = pixels[0]
    else:
        _normalise(_padded(image, (wide * side, high * side), config.pad_color), table, pixels[1:])
    return pixels, (wide, high)


def internvl_grid(
    size: tuple[int, int], config: InternVlProcessorConfig, *, max_tiles: int | None = None
) -> tuple[int, int, int]:
    """(columns, rows, all tiles) of a picture of this size; arguments and errors: `internvl_tiles`."""
    limit = _check_max_tiles(max_tiles, config.min_tiles) or config.max_tiles
    columns, rows = select_grid(size, config.min_tiles, limit, config.tile_size)
    local = columns * rows
    return columns, rows, local + (config.use_thumbnail and local > 1)


def internvl_tiles(image: Image, config: InternVlProcessorConfig, *, max_tiles: int | None = None) -> Pixels:
    """The tiles of one picture: local tiles row by row, then the whole picture if there is more than one.

    Args:
        image: RGB. max_tiles: the most local tiles; None = the checkpoint's.
    Returns:
        [n, 3, S, S] float32, normalised.
    Raises:
        InvalidRequest: max_tiles is below the checkpoint's minimum.
    Source: dynamic_preprocess of InternVL, bicubic as its transform and the Pillow backend of transformers.
    """
    from PIL.Image import Resampling

    side = config.tile_size
    columns, rows, count = internvl_grid(image.size, config, max_tiles=max_tiles)
    local = columns * rows
    pixels = np.empty((count, 3, side, side), np.float32)
    table = _normalisation_table(config.image_mean, config.image_std)
    _normalise(image.resize((columns * side, rows * side), Resampling.BICUBIC), table, pixels[:local])
    if count > local:
        _normalise(image.resize((side, side), Resampling.BICUBIC), table, pixels[local:])
    return pixels


def deepseek_vl2_layout(
    grids: Sequence[tuple[int, int]], side: int, *, global_view_first: bool
) -> npt.NDArray[np.int32]:
    """Which feature row every visual position of a sequence takes.

    Args:
        grids: (tiles_wide, tiles_high) of every picture. side: of one tile's grid of visual tokens.
        global_view_first: the global view stands before the local one.
    Returns:
        int32 [V], rows of concat(features of all tiles [n_tiles * side^2, H], image_newline, view_seperator): rows of
        a view end with the newline, the separator stands between the views.
    Source: prepare_inputs_embeds of DeepSeek-VL2, tile_tag "2D".
    """
    per_tile = side * side
    newline = per_tile * sum(1 + wide * high for wide, high in grids)
    layout: list[npt.NDArray[np.int64]] = []
    start = 0
    for wide, high in grids:
        views = []
        for view_wide, view_high in ((1, 1), (wide, high)):
            count = view_wide * view_high * per_tile
            rows = np.arange(start, start + count).reshape(view_high, view_wide, side, side).transpose(0, 2, 1, 3)
            rows = rows.reshape(view_high * side, view_wide * side)
            views.append(np.pad(rows, ((0, 0), (0, 1)), constant_values=newline).ravel())
            start += count
        first, last = views if global_view_first else views[::-1]
        layout += [first, np.array([newline + 1]), last]
    return np.concatenate(layout).astype(np.int32) if layout else np.empty(0, np.int32)


def _check_max_tiles(max_tiles: int | None, minimum: int) -> int | None:
    if max_tiles is not None and max_tiles < minimum:
        raise InvalidRequest(f"max_tiles {max_tiles}: expected at least {minimum} local tile(s) per image")
    return max_tiles


def _padded(image: Image, size: tuple[int, int], color: tuple[int, int, int]) -> Image:
    from PIL import ImageOps

    return ImageOps.pad(image, size, color=color)


def _normalisation_table(mean: Rgb, std: Rgb) -> Pixels:
    """float32 [3, 256]: (x / 255 - mean) / std of every value of a channel, computed in float32."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def _normalise(image: Image, table: Pixels, out: Pixels) -> None:
    """Cut the picture row by row into the tiles `out` [n, 3, S, S] and look every value up."""
    array = np.asarray(image)
    side = out.shape[-1]
    wide = array.shape[1] // side
    for index, tile in enumerate(out):
        y, x = index // wide * side, index % wide * side
        for channel in range(3):
            # "clip" lets NumPy write to `out` without a buffer; no uint8 is out of range.
            np.take(table[channel], array[y : y + side, x : x + side, channel], out=tile[channel], mode="clip")
