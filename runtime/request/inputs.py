# SPDX-License-Identifier: Apache-2.0
"""Inputs of one sequence for the graphs, and their reading from the tensors of the official processors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, ProcessorConfig
from fastmmoe.runtime.request.images import Pixels, deepseek_vl2_layout

Array: TypeAlias = npt.NDArray[Any]
Ids: TypeAlias = npt.NDArray[np.int32]
Tensors: TypeAlias = Mapping[str, Array]
Grids: TypeAlias = Sequence[tuple[int, int]]

_DEEPSEEK_IMAGE_NAMES = ("images_seq_mask", "images_spatial_crop", "images")


@dataclass(frozen=True)
class ModelInputs:
    """One sequence, without padding.

    Attributes:
        input_ids: int32 [T].
        visual_index: int32 [V], ascending: the positions that take vision features.
        vision_inputs: inputs of the vision graph, empty without pictures. `pixel_values` float32
            [n_tiles, 3, S, S]; for DeepSeek-VL2 also `layout_index` int32 [V], rows of concat(features of all
            tiles, image_newline, view_seperator).
        tile_counts: tiles of every picture.
        image_sizes: (width, height) of every picture; empty where the inputs came as tensors.
    """

    input_ids: Ids
    visual_index: Ids
    vision_inputs: dict[str, Array]
    tile_counts: tuple[int, ...] = ()
    image_sizes: tuple[tuple[int, int], ...] = ()


def check_length(inputs: ModelInputs, config: ProcessorConfig) -> ModelInputs:
    """Return the inputs unchanged; InvalidRequest if they do not fit the model's positions."""
    check_tokens(len(inputs.input_ids), len(inputs.visual_index), config)
    return inputs


def check_tokens(new: int, visual: int, config: ProcessorConfig, tokens_before: int = 0) -> None:
    """InvalidRequest if so many new tokens, so many of them visual, do not fit the model's positions after others."""
    tokens, limit = tokens_before + new, config.max_position_embeddings
    if tokens > limit:
        advice = "give fewer tiles (--max-tiles), fewer images or a shorter text"
        parts = f"{visual} of them visual"
        if tokens_before:
            parts = f"{tokens_before} of them of earlier turns and {visual} of the new ones visual"
            advice += ", or start a new conversation"
        raise InvalidRequest(f"the sequence has {tokens} tokens, {parts}: the model takes at most {limit}; {advice}")


def deepseek_vl2_vision_inputs(config: DeepseekVl2ProcessorConfig, pixels: Pixels, grids: Grids) -> dict[str, Array]:
    """Inputs of DeepSeek-VL2's vision graph: pixels [n_tiles, 3, S, S] and (tiles_wide, tiles_high) per picture."""
    layout = deepseek_vl2_layout(grids, config.grid_side, global_view_first=config.global_view_first)
    return {"pixel_values": pixels, "layout_index": layout}


def deepseek_vl2_tensor_inputs(tensors: Tensors, config: DeepseekVl2ProcessorConfig) -> list[ModelInputs]:
    """One ModelInputs for every row of a batch of DeepSeek-VL2's processor.

    Args:
        tensors: input_ids [B, T] int32 or int64, attention_mask [B, T] bool or 0 and 1 (absent = all ones),
            images_seq_mask [B, T] bool, True where an image token stands and nowhere else, images_spatial_crop
            [B, n_images, 2] integer, (0, 0) = no picture, images [B, n_tiles, 3, S, S] float32, finite, zero where a
            row has fewer tiles. Without pictures the last three may all be left out.
    Raises:
        InvalidRequest: names, shapes, types, ids or counts do not fit.
    """
    has_images = any(name in tensors for name in _DEEPSEEK_IMAGE_NAMES)
    required = ("input_ids", *(_DEEPSEEK_IMAGE_NAMES if has_images else ()))
    _check_names(tensors, required, ("attention_mask",))
    rows = _read_rows(tensors, config.vocab_size)
    batch, length = tensors["input_ids"].shape
    if not has_images:
        for row, (ids, start) in enumerate(rows):
            _check_mask(np.zeros(length, bool), ids, start, config.image_token_id, row)
        return [check_length(ModelInputs(ids, _empty(), {}), config) for ids, _ in rows]
    side = config.tile_size
    mask = _check(tensors, "images_seq_mask", (batch, length), "b")
    crops = _check(tensors, "images_spatial_crop", (batch, None, 2), "iu")
    images = _check(tensors, "images", (batch, None, 3, side, side), "f4")
    inputs = []
    for row, (ids, start) in enumerate(rows):
        grids = _read_grids(crops[row], row)
        pixels = _used_tiles(images[row], grids, row)
        visual_index = np.flatnonzero(mask[row, start:]).astype(np.int32)
        vision_inputs = deepseek_vl2_vision_inputs(config, pixels, grids) if grids else {}
        expected = len(vision_inputs["layout_index"]) if grids else 0
        if len(visual_index) != expected:
            raise InvalidRequest(
                f"images_seq_mask, row {row}: {len(visual_index)} visual positions, expected {expected} from "
                f"images_spatial_crop {[list(grid) for grid in grids]}"
            )
        _check_mask(mask[row], ids, start, config.image_token_id, row)
        tile_counts = tuple(1 + wide * high for wide, high in grids)
        inputs.append(check_length(ModelInputs(ids, visual_index, vision_inputs, tile_counts), config))
    return inputs


def internvl_tensor_inputs(tensors: Tensors, config: InternVlProcessorConfig) -> list[ModelInputs]:
    """One ModelInputs for every row of a batch of InternVL's processor.

    Args:
        tensors: input_ids [B, T] int32 or int64, attention_mask [B, T] bool or 0 and 1 (absent = all ones),
            pixel_values [n_tiles, 3, S, S] float32, finite, the tiles of all rows in order (may be left out
            without pictures). A run of image tokens counts as one picture.
    Raises:
        InvalidRequest: names, shapes, types, ids or counts do not fit.
    """
    _check_names(tensors, ("input_ids",), ("attention_mask", "pixel_values"))
    rows = _read_rows(tensors, config.vocab_size)
    side = config.tile_size
    pixels: Pixels = np.empty((0, 3, side, side), np.float32)
    if "pixel_values" in tensors:
        pixels = _check(tensors, "pixel_values", (None, 3, side, side), "f4")
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


def _empty() -> Ids:
    return np.empty(0, np.int32)


def _check_names(tensors: Tensors, required: Sequence[str], optional: Sequence[str]) -> None:
    missing = sorted(set(required) - tensors.keys())
    unknown = sorted(map(str, tensors.keys() - {*required, *optional}))
    if missing or unknown:
        raise InvalidRequest(
            f"input tensors: missing {', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}; "
            f"expected {', '.join(required)} and, optionally, {', '.join(optional)}"
        )


def _check(tensors: Tensors, name: str, shape: tuple[int | None, ...], kinds: str) -> Array:
    """The tensor, if its shape (None = any size) and its type (NumPy kinds, or "f4" = float32) are as given."""
    tensor = tensors[name]
    if not isinstance(tensor, np.ndarray):
        raise InvalidRequest(f"{name} is of type {type(tensor).__name__}: expected a NumPy array")
    fits = tensor.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    is_type = tensor.dtype == np.float32 if kinds == "f4" else tensor.dtype.kind in kinds
    if not (fits and is_type):
        words = {"f4": "float32", "b": "bool", "iu": "integer", "biu": "bool or integer"}
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidRequest(
            f"{name} is {tensor.dtype} {list(tensor.shape)}: expected {words[kinds]} of shape [{expected}]"
        )
    if kinds == "f4" and not np.isfinite(tensor).all():
        place = np.unravel_index(int(np.argmin(np.isfinite(tensor))), tensor.shape)
        raise InvalidRequest(f"{name} holds {tensor[place]} at {[int(i) for i in place]}: expected finite numbers")
    return tensor


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


def _read_rows(tensors: Tensors, vocab_size: int) -> list[tuple[Ids, int]]:
    """(ids without padding, where they start) of every row."""
    ids = _check(tensors, "input_ids", (None, None), "iu")
    mask = np.ones(ids.shape, bool)
    if "attention_mask" in tensors:
        given = _check(tensors, "attention_mask", ids.shape, "biu")
        mask = given.astype(bool)
        if not np.array_equal(mask, given):
            raise InvalidRequest(f"attention_mask holds values from {given.min()} to {given.max()}: expected 0 and 1")
    rows = []
    for row in range(len(ids)):
        length = int(mask[row].sum())
        start = ids.shape[1] - length
        if length == 0 or not mask[row, start:].all():
            raise InvalidRequest(
                f"attention_mask, row {row}: {length} of {ids.shape[1]} positions are set and not all of them at the "
                "end; expected left padding and at least one token"
            )
        kept = ids[row, start:]
        if kept.min() < 0 or kept.max() >= vocab_size:
            raise InvalidRequest(
                f"input_ids, row {row}: ids from {kept.min()} to {kept.max()}, expected 0 to {vocab_size - 1}"
            )
        rows.append((kept.astype(np.int32), start))
    return rows


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
