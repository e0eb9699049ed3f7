# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of InternVL3.5: what `family.Family` asks of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import FamilyName, InternVlProcessorConfig
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.images import (
    PictureMap,
    Pixels,
    check_max_tiles,
    normalisation_table,
    normalise,
    stack_tiles,
)
from fastmmoe.runtime.request.inputs import (
    Ids,
    ModelInputs,
    Tensors,
    check_length,
    check_names,
    check_tensor,
    read_rows,
)
from fastmmoe.runtime.request.prompts import Marker
from fastmmoe.runtime.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

Size: TypeAlias = tuple[int, int]
Grid: TypeAlias = tuple[int, int, int]
"""Columns, rows, and tiles in all, a thumbnail among them."""

NAME: FamilyName = "internvl3_5"
HAS_LAYOUT = False
HAS_OWN_ENDS = False
HAS_VIDEO = True
SPLITS_AT_PICTURES = False
FRAME: Grid = (1, 1, 1)
"""Of a video's frame, whatever min_tiles and max_tiles say (processing_internvl.py of transformers)."""


def cut(
    config: InternVlProcessorConfig,
    sizes: Sequence[Size],
    max_tiles: int | None,
    pictures_before: int,
    frames: Collection[int] = (),
) -> _Cut:
    """How pictures of these sizes are cut, whatever pictures are before them; a video's frame is one tile."""
    return _Cut(
        config, [FRAME if i in frames else choose_grid(s, config, max_tiles=max_tiles) for i, s in enumerate(sizes)]
    )


def around_picture(config: InternVlProcessorConfig) -> tuple[str, ...]:
    """Names of the tokens before and after a picture's visual tokens."""
    return config.image_start_token, config.image_end_token


def marker_id(config: InternVlProcessorConfig, marker: Marker) -> int | None:
    """Its templates have no markers but the picture's."""
    raise AssertionError(f"{marker} in the template {config.template}")


def least_tiles(config: InternVlProcessorConfig) -> int:
    """The least that a request's max_tiles may be."""
    return config.min_tiles


def picture_tiles(config: InternVlProcessorConfig) -> int:
    """The most tiles of one picture, its thumbnail among them."""
    return config.max_tiles + (config.use_thumbnail and config.max_tiles > 1)


def most_visual_tokens(config: InternVlProcessorConfig, tiles: int) -> int:
    """The visual tokens that pictures of so many tiles in all have."""
    return tiles * config.tokens_per_tile


def picture_map(config: InternVlProcessorConfig, inputs: ModelInputs) -> PictureMap:
    """Where the visual tokens of a prompt with one picture stand."""
    side, tiles = round(config.tokens_per_tile**0.5), inputs.tile_counts[0]
    cells = np.arange(tiles * side * side)
    by_tile = cells.reshape(tiles, side, side)
    has_thumbnail = config.use_thumbnail and tiles > 1
    local = by_tile[: tiles - has_thumbnail]
    wide, high = select_grid(inputs.picture_sizes[0], config.min_tiles, len(local), config.tile_size)
    grid = local.reshape(high, wide, side, side).transpose(0, 2, 1, 3).reshape(high * side, wide * side)
    views = {"local view": grid, "thumbnail": by_tile[-1]} if has_thumbnail else {"the view": grid}
    return PictureMap(side, config.tile_size // side, cells, views)


def contradictions(config: InternVlProcessorConfig, tokens_per_tile: int) -> Iterator[str]:
    """What in a manifest's record contradicts itself or the vision graph, in words that follow the file's name."""
    if config.tokens_per_tile != tokens_per_tile:
        yield f"processor.tokens_per_tile is {config.tokens_per_tile}: expected {tokens_per_tile}, as in vision"
    if config.min_tiles > config.max_tiles:
        yield f"processor.min_tiles is {config.min_tiles}: expected at most max_tiles, {config.max_tiles}"


def has_tokenizer(config: InternVlProcessorConfig) -> bool | None:
    """Its config.json may name the image token's id, too, so that the record does not say."""
    return None


class _Cut:
    """See `family.Cut`."""

    def __init__(self, config: InternVlProcessorConfig, grids: Sequence[Grid]) -> None:
        self._config, self._grids = config, grids
        self.tile_counts = tuple(count for _, _, count in grids)
        self.visual_counts = [count * config.tokens_per_tile for count in self.tile_counts]

    def vision_inputs(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        grids = zip(pictures, self._grids, strict=True)
        tiles = (_tiles_of_grid(picture.decode(), self._config, grid) for picture, grid in grids)
        pixels = stack_tiles(tiles, self.tile_counts, self._config.tile_size)
        return self.tile_inputs(pixels) if pictures else {}

    def tile_inputs(self, pixels: Pixels) -> dict[str, Array]:
        return {"pixel_values": pixels}


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


def choose_grid(size: tuple[int, int], config: InternVlProcessorConfig, *, max_tiles: int | None = None) -> Grid:
    """The grid of a picture of this size; arguments and errors: `cut_tiles`."""
    limit = check_max_tiles(max_tiles, least_tiles(config)) or config.max_tiles
    columns, rows = select_grid(size, config.min_tiles, limit, config.tile_size)
    local = columns * rows
    return columns, rows, local + (config.use_thumbnail and local > 1)


def cut_tiles(image: Image, config: InternVlProcessorConfig, *, max_tiles: int | None = None) -> Pixels:
    """The tiles of one picture: local tiles row by row, then the whole picture if there is more than one.

    Args:
        image: RGB.
        max_tiles: the most local tiles; None = the checkpoint's.
    Returns:
        [n, 3, S, S] float32, normalised.
    Raises:
        InvalidRequest: max_tiles is below the checkpoint's minimum.
    Source: dynamic_preprocess of InternVL, bicubic as its transform and the Pillow backend of transformers.
    """
    return _tiles_of_grid(image, config, choose_grid(image.size, config, max_tiles=max_tiles))


def _tiles_of_grid(image: Image, config: InternVlProcessorConfig, grid: Grid) -> Pixels:
    from PIL.Image import Resampling

    side, (columns, rows, count) = config.tile_size, grid
    local = columns * rows
    pixels = np.empty((count, 3, side, side), np.float32)
    table = normalisation_table(config.image_mean, config.image_std)
    normalise(image.resize((columns * side, rows * side), Resampling.BICUBIC), table, pixels[:local])
    if count > local:
        normalise(image.resize((side, side), Resampling.BICUBIC), table, pixels[local:])
    return pixels


def tensor_inputs(tensors: Tensors, config: InternVlProcessorConfig) -> list[ModelInputs]:
    """One ModelInputs for every row of a batch of InternVL's processor.

    Args:
        tensors: input_ids [B, T] int32 or int64, attention_mask [B, T] bool or 0 and 1 (absent = all ones),
            pixel_values [n_tiles, 3, S, S] float32, finite, the tiles of all rows in order (may be left out
            without pictures). A run of image tokens counts as one picture.
    Raises:
        InvalidRequest: names, shapes, types, ids or counts do not fit.
    """
    check_names(tensors, ("input_ids",), ("attention_mask", "pixel_values"))
    rows = read_rows(tensors, config.vocab_size)
    side = config.tile_size
    pixels: Pixels = np.empty((0, 3, side, side), np.float32)
    if "pixel_values" in tensors:
        pixels = check_tensor(tensors, "pixel_values", (None, 3, side, side), "f4")
    found = [np.flatnonzero(ids == config.image_token_id).astype(np.int32) for ids, _ in rows]
    counts = [_tiles_of_runs(index, config, row) for row, index in enumerate(found)]
    expected = sum(sum(row) for row in counts)
    if expected != len(pixels):
        raise InvalidRequest(
            f"pixel_values has {len(pixels)} tiles: expected {expected} for the {sum(map(len, found))} image tokens "
            f"(id {config.image_token_id}) of input_ids, {config.tokens_per_tile} a tile"
        )
    inputs, start = [], 0
    for (ids, _), index, tile_counts in zip(rows, found, counts, strict=True):
        end = start + sum(tile_counts)
        vision_inputs: dict[str, Array] = {"pixel_values": pixels[start:end]} if tile_counts else {}
        inputs.append(check_length(ModelInputs(ids, index, vision_inputs, tile_counts), config))
        start = end
    return inputs


def _tiles_of_runs(index: Ids, config: InternVlProcessorConfig, row: int) -> tuple[int, ...]:
    """Tiles of every run of consecutive image tokens."""
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1) if len(index) else []
    for run in runs:
        if len(run) % config.tokens_per_tile:
            raise InvalidRequest(
                f"input_ids, row {row}: {len(run)} image tokens from position {run[0]}, expected a multiple of "
                f"{config.tokens_per_tile}"
            )
    return tuple(len(run) // config.tokens_per_tile for run in runs)
