# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of DeepSeek-VL2: what `family.Family` asks of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, FamilyName
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.images import (
    PictureMap,
    Pixels,
    check_max_tiles,
    normalisation_table,
    normalise,
    padded,
    stack_tiles,
)
from fastmmoe.runtime.request.inputs import (
    Ids,
    ModelInputs,
    Tensors,
    check_length,
    check_names,
    check_tensor,
    no_ids,
    read_rows,
)
from fastmmoe.runtime.request.prompts import Marker
from fastmmoe.runtime.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

Size: TypeAlias = tuple[int, int]
Grids: TypeAlias = Sequence[tuple[int, int]]

NAME: FamilyName = "deepseek_vl2"
HAS_LAYOUT = True
HAS_OWN_ENDS = True
HAS_VIDEO = False
SPLITS_AT_PICTURES = True
# The official processor cuts pictures into tiles only in conversations with at most so many of them.
MAX_TILED_PICTURES = 2
_IMAGE_NAMES = ("images_seq_mask", "images_spatial_crop", "images")


def cut(
    config: DeepseekVl2ProcessorConfig,
    sizes: Sequence[Size],
    max_tiles: int | None,
    pictures_before: int,
    frames: Collection[int] = (),
) -> _Cut:
    """How pictures of these sizes are cut; new ones into tiles only if there are at most two with those before."""
    assert not frames
    return _Cut(config, sizes, max_tiles, tiled=pictures_before + len(sizes) <= MAX_TILED_PICTURES)


def around_picture(config: DeepseekVl2ProcessorConfig) -> tuple[str, ...]:
    """Names of the tokens before and after a picture's visual tokens: none."""
    return ()


def marker_id(config: DeepseekVl2ProcessorConfig, marker: Marker) -> int | None:
    """The token that a marker of the template stands for."""
    return config.bos_token_id if marker is Marker.BOS else config.eos_token_id


def least_tiles(config: DeepseekVl2ProcessorConfig) -> int:
    """The least that a request's max_tiles may be."""
    return 1


def picture_tiles(config: DeepseekVl2ProcessorConfig) -> int:
    """The most tiles of one picture, its global view among them."""
    side = config.tile_size
    return 1 + max((width // side) * (height // side) for width, height in config.candidate_resolutions)


def most_visual_tokens(config: DeepseekVl2ProcessorConfig, tiles: int) -> int:
    """The most visual tokens that pictures of so many tiles in all can have."""
    side = config.grid_side
    # At worst every tile's rows end with a newline of their own. A picture has two tiles or more and one separator.
    return tiles * side * (side + 1) + tiles // 2


def picture_map(config: DeepseekVl2ProcessorConfig, inputs: ModelInputs) -> PictureMap:
    """Where the visual tokens of a prompt with one picture stand; newlines end a view's rows, the separator has none.

    The separator stands between the views: below the first one.
    """
    side, layout = config.grid_side, inputs.vision_inputs["layout_index"]
    newline = side * side * len(inputs.vision_inputs["pixel_values"])
    separator = int(np.flatnonzero(layout == newline + 1)[0])
    halves = [np.arange(separator), np.arange(separator + 1, len(layout))]
    names = ["global view", "local view"] if config.global_view_first else ["local view", "global view"]
    views = {}
    for name, tokens in zip(names, halves, strict=True):
        columns = int(np.flatnonzero(layout[tokens] == newline)[0]) + 1
        views[name] = tokens.reshape(-1, columns)
    first = views[names[0]]
    views[names[0]] = np.pad(first, ((0, 1), (0, 0)), constant_values=-1)
    views[names[0]][-1, 0] = separator
    cells = np.where(layout < newline, layout, -1)
    return PictureMap(side, config.patch_size * config.downsample_ratio, cells, views)


def contradictions(config: DeepseekVl2ProcessorConfig, tokens_per_tile: int) -> Iterator[str]:
    """What in a manifest's record contradicts itself or the vision graph, in words that follow the file's name."""
    for name in ("bos_token_id", "eos_token_id"):
        if config.image_token_id is not None and getattr(config, name) is None:
            yield f"processor.{name} is null: expected an id, as there is an image_token_id and so a tokenizer"
    side = config.tile_size
    uneven = [size for pair in config.candidate_resolutions for size in pair if size % side]
    if uneven:
        yield f"processor.candidate_resolutions has {uneven[0]}: expected multiples of the first, {side}"
    if config.grid_side**2 != tokens_per_tile:
        yield (
            f"processor gives {config.grid_side**2} tokens a tile (side {side}, patch_size {config.patch_size}, "
            f"downsample_ratio {config.downsample_ratio}): expected {tokens_per_tile}, as in vision"
        )


def has_tokenizer(config: DeepseekVl2ProcessorConfig) -> bool | None:
    """Whether the record is of a checkpoint with a tokenizer, which alone knows the image token's id."""
    return config.image_token_id is not None


class _Cut:
    """See `family.Cut`; with `tiled` False every picture gets one local tile."""

    def __init__(
        self, config: DeepseekVl2ProcessorConfig, sizes: Sequence[Size], max_tiles: int | None, *, tiled: bool
    ) -> None:
        self._config, self._tiled, self._max_tiles = config, tiled, max_tiles
        self._grids = [choose_grid(size, config, tiled=tiled, max_tiles=max_tiles) for size in sizes]
        side = config.grid_side
        self.tile_counts = tuple(1 + wide * high for wide, high in self._grids)
        self.visual_counts = [side * (side + 1) + 1 + high * side * (wide * side + 1) for wide, high in self._grids]

    def vision_inputs(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        config, tiled, max_tiles = self._config, self._tiled, self._max_tiles
        tiles = (cut_tiles(p.decode(), config, tiled=tiled, max_tiles=max_tiles)[0] for p in pictures)
        pixels = stack_tiles(tiles, self.tile_counts, config.tile_size)
        return self.tile_inputs(pixels) if pictures else {}

    def tile_inputs(self, pixels: Pixels) -> dict[str, Array]:
        return vision_inputs(self._config, pixels, self._grids)


def select_best_resolution(size: tuple[int, int], candidates: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The candidate that keeps the most pixels of a picture, and among those the one that wastes least.

    Args:
        size: (width, height) of the picture.
        candidates: (width, height); the earlier wins a tie.
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


def choose_grid(
    size: tuple[int, int], config: DeepseekVl2ProcessorConfig, *, tiled: bool, max_tiles: int | None = None
) -> tuple[int, int]:
    """(tiles_wide, tiles_high) of a picture of this size; arguments and errors: `cut_tiles`."""
    side = config.tile_size
    limit = check_max_tiles(max_tiles, least_tiles(config))
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


def cut_tiles(
    image: Image, config: DeepseekVl2ProcessorConfig, *, tiled: bool, max_tiles: int | None = None
) -> tuple[Pixels, tuple[int, int]]:
    """The tiles of one picture: the global view, then the local view's tiles row by row.

    Args:
        image: RGB.
        tiled: choose a local view that fits; False = one local tile, equal to the global one.
        max_tiles: the most local tiles; None = as many as the largest candidate has.
    Returns:
        pixels [1 + tiles_wide * tiles_high, 3, S, S] float32, normalised, and (tiles_wide, tiles_high).
    Raises:
        InvalidRequest: max_tiles is below 1, or the picture is too thin to be padded to a tile.
    Source: tokenize_with_images of DeepSeek-VL2's processor.
    """
    side = config.tile_size
    wide, high = choose_grid(image.size, config, tiled=tiled, max_tiles=max_tiles)
    pixels = np.empty((1 + wide * high, 3, side, side), np.float32)
    table = normalisation_table(config.image_mean, config.image_std)
    normalise(padded(image, (side, side), config.pad_color), table, pixels[:1])
    if (wide, high) == (1, 1):
        pixels[1] = pixels[0]
    else:
        normalise(padded(image, (wide * side, high * side), config.pad_color), table, pixels[1:])
    return pixels, (wide, high)


def deepseek_vl2_layout(
    grids: Sequence[tuple[int, int]], side: int, *, global_view_first: bool
) -> npt.NDArray[np.int32]:
    """Which feature row every visual position of a sequence takes.

    Args:
        grids: (tiles_wide, tiles_high) of every picture.
        side: rows and columns of one tile's grid of visual tokens.
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


def vision_inputs(config: DeepseekVl2ProcessorConfig, pixels: Pixels, grids: Grids) -> dict[str, Array]:
    """Inputs of DeepSeek-VL2's vision graph: pixels [n_tiles, 3, S, S] and (tiles_wide, tiles_high) per picture."""
    layout = deepseek_vl2_layout(grids, config.grid_side, global_view_first=config.global_view_first)
    return {"pixel_values": pixels, "layout_index": layout}


def tensor_inputs(tensors: Tensors, config: DeepseekVl2ProcessorConfig) -> list[ModelInputs]:
    """One ModelInputs for every row of a batch of DeepSeek-VL2's processor.

    Args:
        tensors: input_ids [B, T] int32 or int64, attention_mask [B, T] bool or 0 and 1 (absent = all ones),
            images_seq_mask [B, T] bool, True where an image token stands and nowhere else, images_spatial_crop
            [B, n_images, 2] integer, (0, 0) = no picture, images [B, n_tiles, 3, S, S] float32, finite, zero where a
            row has fewer tiles. Without pictures the last three may all be left out.
    Raises:
        InvalidRequest: names, shapes, types, ids or counts do not fit.
    """
    has_images = any(name in tensors for name in _IMAGE_NAMES)
    required = ("input_ids", *(_IMAGE_NAMES if has_images else ()))
    check_names(tensors, required, ("attention_mask",))
    rows = read_rows(tensors, config.vocab_size)
    batch, length = tensors["input_ids"].shape
    if not has_images:
        for row, (ids, start) in enumerate(rows):
            _check_mask(np.zeros(length, bool), ids, start, config.image_token_id, row)
        return [check_length(ModelInputs(ids, no_ids(), {}), config) for ids, _ in rows]
    side = config.tile_size
    mask = check_tensor(tensors, "images_seq_mask", (batch, length), "b")
    crops = check_tensor(tensors, "images_spatial_crop", (batch, None, 2), "iu")
    images = check_tensor(tensors, "images", (batch, None, 3, side, side), "f4")
    inputs = []
    for row, (ids, start) in enumerate(rows):
        grids = _read_grids(crops[row], row)
        pixels = _used_tiles(images[row], grids, row)
        visual_index = np.flatnonzero(mask[row, start:]).astype(np.int32)
        of_vision = vision_inputs(config, pixels, grids) if grids else {}
        expected = len(of_vision["layout_index"]) if grids else 0
        if len(visual_index) != expected:
            raise InvalidRequest(
                f"images_seq_mask, row {row}: {len(visual_index)} visual positions, expected {expected} from "
                f"images_spatial_crop {[list(grid) for grid in grids]}"
            )
        _check_mask(mask[row], ids, start, config.image_token_id, row)
        tile_counts = tuple(1 + wide * high for wide, high in grids)
        inputs.append(check_length(ModelInputs(ids, visual_index, of_vision, tile_counts), config))
    return inputs


def _check_mask(mask: Array, ids: Ids, start: int, image_token_id: int | None, row: int) -> None:
    """Whether a row's images_seq_mask marks its image tokens and nothing else, padding included."""
    if image_token_id is None:
        # Exported without a tokenizer, which knows the id: it is the one that is marked.
        marked = ids[mask[start:]]
        image_token_id = int(marked[0]) if len(marked) else -1
    is_image = np.zeros(len(mask), bool)
    is_image[start:] = ids == image_token_id
    wrong = np.flatnonzero(mask != is_image)
    if len(wrong):
        at = int(wrong[0])
        found = "padding" if at < start else f"id {ids[at - start]}"
        state = "marks" if mask[at] else "does not mark"
        raise InvalidRequest(
            f"images_seq_mask, row {row}: {state} position {at}, {found}, and {len(wrong) - 1} more like it; expected "
            f"True where input_ids has the image token, id {image_token_id}, and False elsewhere"
        )


def _read_grids(crops: Array, row: int) -> list[tuple[int, int]]:
    """(tiles_wide, tiles_high) of the pictures of a row; absent ones stand at the end."""
    grids = [(int(wide), int(high)) for wide, high in crops if wide > 0 and high > 0]
    if np.any(crops[len(grids) :] != 0) or np.any(crops[: len(grids)] <= 0):
        raise InvalidRequest(
            f"images_spatial_crop, row {row}: {crops.tolist()}, expected (tiles wide, tiles high) of every image, "
            "both at least 1, then (0, 0)"
        )
    return grids


def _used_tiles(images: Pixels, grids: Grids, row: int) -> Pixels:
    used = sum(1 + wide * high for wide, high in grids)
    if used > len(images):
        raise InvalidRequest(
            f"images, row {row}: {len(images)} tiles, expected at least {used} for images_spatial_crop "
            f"{[list(grid) for grid in grids]}"
        )
    if np.any(images[used:]):
        raise InvalidRequest(
            f"images, row {row}: a tile after the first {used}, which images_spatial_crop "
            f"{[list(grid) for grid in grids]} accounts for, is not zero"
        )
    return images[:used]
