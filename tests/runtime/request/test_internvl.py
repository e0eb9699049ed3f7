# SPDX-License-Identifier: Apache-2.0
"""Tiling, pixels and inputs of InternVL3.5 against the recorded outputs of its official processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request import internvl as internvl3_5
from fastmmoe.runtime.request.config import InternVlProcessorConfig
from fastmmoe.runtime.request.image_reader import open_image
from fastmmoe.runtime.request.inputs import ModelInputs, no_ids
from fastmmoe.runtime.request.internvl import select_grid
from fastmmoe.runtime.types import Array
from tests.support.golden import GoldenArray
from tests.support.model_inputs import STATISTICS_TOLERANCE, TOLERANCE, assert_same_inputs, changed, replaced
from tests.support.processors import MakeMessages, MakeProcessor


@pytest.mark.parametrize("max_tiles", [6, 12])
def test_grid_of_every_recorded_size(max_tiles: int, golden_array: GoldenArray) -> None:
    sizes = golden_array("internvl-inputs/tiling.npz", "size_wh").tolist()
    expected = golden_array("internvl-inputs/tiling.npz", f"grid_cols_rows_max{max_tiles}").tolist()
    assert len(sizes) == 414
    assert [list(select_grid((w, h), 1, max_tiles, 448)) for w, h in sizes] == expected


@pytest.mark.parametrize(("size", "grid"), [((633, 633), (1, 1)), ((634, 634), (2, 2))])
def test_equal_aspect_ratios_are_decided_by_the_area(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert select_grid(size, 1, 4, 448) == grid


def test_internvl_pixels(internvl: InternVlProcessorConfig, golden: Path, golden_array: GoldenArray) -> None:
    image = open_image(golden / "internvl-inputs" / "img0_700x500.png")
    pixels = internvl3_5.cut_tiles(image, internvl, max_tiles=6)
    expected = golden_array("internvl-inputs/pixels_img0_max6.npz", "pixel_values")
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=TOLERANCE)
    small = internvl3_5.cut_tiles(open_image(golden / "internvl-inputs" / "img2_300x260.png"), internvl, max_tiles=6)
    expected = golden_array("internvl-qwen3moe/outputs_batch2.npz", "pixel_values")
    np.testing.assert_allclose(small, expected, rtol=0, atol=TOLERANCE)


def test_internvl_takes_twelve_tiles_by_default(
    internvl: InternVlProcessorConfig, golden: Path, golden_array: GoldenArray
) -> None:
    pixels = internvl3_5.cut_tiles(open_image(golden / "internvl-inputs" / "img0_700x500.png"), internvl)
    file = "internvl-inputs/pixels_img0_max12_sample.npz"
    np.testing.assert_allclose(pixels[..., ::16, ::16], golden_array(file, "sample"), rtol=0, atol=TOLERANCE)
    for name, found in (("mean", pixels.mean((1, 2, 3))), ("std", pixels.std((1, 2, 3)))):
        np.testing.assert_allclose(found, golden_array(file, name), rtol=0, atol=STATISTICS_TOLERANCE)


def test_grids_of_many_tiles_are_found_at_once() -> None:
    assert select_grid((1000, 10), 1, 4096, 448) == (100, 1)
    assert select_grid((123_450, 100_000), 4000, 4096, 448) == (71, 57)


INTERNVL = ("internvl-qwen3moe", "internvl-gptoss")


def internvl_row(
    name: str, processor: MakeProcessor, images: list[str], text: str, messages: MakeMessages
) -> ModelInputs:
    system = "You are a helpful assistant." if name == "internvl-qwen3moe" else None
    return processor(name)(messages(images, text, system), max_tiles=6)


@pytest.mark.parametrize("name", INTERNVL)
@pytest.mark.parametrize(
    ("file", "row", "images", "text"),
    [
        ("single", 0, ["img0_700x500"], "What colour is the largest box?"),
        ("batch2", 0, ["img2_300x260"], "OCR."),
        ("batch2", 1, [], "Say hello in three words, no picture here."),
        ("text", 0, [], "Say hello in three words, no picture here."),
    ],
)
def test_internvl_ids(
    name: str, file: str, row: int, images: list[str], text: str,
    processor: MakeProcessor, messages: MakeMessages, golden_array: GoldenArray,
) -> None:  # fmt: skip
    inputs = internvl_row(name, processor, images, text, messages)
    mask = golden_array(f"{name}/outputs_{file}.npz", "attention_mask")[row] == 1
    expected = golden_array(f"{name}/outputs_{file}.npz", "input_ids")[row][mask]
    assert inputs.input_ids.tolist() == expected.tolist()
    assert inputs.visual_index.tolist() == np.flatnonzero(expected == 392).tolist()
    assert len(inputs.visual_index) == 256 * sum(inputs.tile_counts)
    assert inputs.vision_inputs.keys() == ({"pixel_values"} if images else set())


@pytest.mark.parametrize("name", INTERNVL)
def test_internvl_tensors_give_the_same_as_messages(
    name: str, processor: MakeProcessor, messages: MakeMessages, golden_array: GoldenArray
) -> None:
    names = ("input_ids", "attention_mask", "pixel_values")
    batch = {key: golden_array(f"{name}/outputs_batch2.npz", key) for key in names}
    first, second = processor(name).from_tensors(batch)
    assert_same_inputs(first, internvl_row(name, processor, ["img2_300x260"], "OCR.", messages))
    text = "Say hello in three words, no picture here."
    assert_same_inputs(second, internvl_row(name, processor, [], text, messages))
    single = {key: golden_array(f"{name}/outputs_single.npz", key) for key in names[:2]}
    single["pixel_values"] = golden_array("internvl-inputs/pixels_img0_max6.npz", "pixel_values")
    (found,) = processor(name).from_tensors(single)
    expected = internvl_row(name, processor, ["img0_700x500"], "What colour is the largest box?", messages)
    assert_same_inputs(found, expected)


def test_internvl_tiles_are_dealt_to_the_rows_in_order(processor: MakeProcessor, messages: MakeMessages) -> None:
    make = processor("internvl-qwen3moe")
    inputs = [
        make(messages(images, "Compare."), max_tiles=tiles)
        for images, tiles in ((["img2_300x260"], 1), (["img0_700x500", "img1_420x980"], 2))
    ]
    assert [row.tile_counts for row in inputs] == [(1,), (1, 3)]
    length = max(len(row.input_ids) for row in inputs)
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    for i, row in enumerate(inputs):
        ids[i, length - len(row.input_ids) :] = row.input_ids
        mask[i, length - len(row.input_ids) :] = 1
    pixels = np.concatenate([row.vision_inputs["pixel_values"] for row in inputs])
    rows = make.from_tensors({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    for found, expected in zip(rows, inputs, strict=True):
        assert_same_inputs(found, expected)


def internvl_tensors() -> dict[str, Array]:
    ids = np.full((1, 300), 5, np.int64)
    ids[0, 10:266] = 392
    return {"input_ids": ids, "pixel_values": np.zeros((1, 3, 448, 448), np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("input_ids", (0, 266), 392),
            "input_ids, row 0: 257 image tokens from position 10, expected a multiple",
        ),
        (changed("input_ids", (0, slice(10, 266)), 5), "pixel_values has 1 tiles: expected 0 for the 0 image tokens"),
        (lambda t: t.pop("pixel_values"), r"pixel_values has 0 tiles: expected 1 for the 256 image tokens \(id 392\)"),
        (changed("pixel_values", (0, 2, 1, 0), np.nan), r"pixel_values holds nan at \[0, 2, 1, 0\]: expected finite"),
        (replaced("pixel_values", np.float16), r"pixel_values is float16 \[1, 3, 448, 448\]: expected float32 of"),
        (replaced("pixel_values", lambda a: a[0]), r"pixel_values is float32 \[3, 448, 448\]: expected float32 of"),
        (lambda t: t.pop("input_ids"), "input tensors: missing input_ids; unknown none; expected input_ids and, opt"),
    ],
)
def test_unusable_internvl_tensors(
    change: Callable[[dict[str, Array]], Any], message: str, processor: MakeProcessor
) -> None:
    make, tensors = processor("internvl-qwen3moe"), internvl_tensors()
    assert make.from_tensors(tensors)[0].tile_counts == (1,)
    change(tensors)
    with pytest.raises(InvalidRequest, match=message) as error:
        make.from_tensors(tensors)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "changes", "max_tiles", "found"),
    [
        ((448, 448), {}, None, (1, 1, 1)),
        ((896, 448), {}, None, (2, 1, 3)),
        ((896, 448), {}, 1, (1, 1, 1)),
        ((896, 448), {"use_thumbnail": False}, None, (2, 1, 2)),
        ((10, 10), {"min_tiles": 2}, None, (2, 2, 5)),
        ((4480, 448), {}, None, (10, 1, 11)),
        ((4480, 448), {}, 6, (6, 1, 7)),
    ],
)
def test_a_thumbnail_comes_with_more_than_one_tile(
    size: tuple[int, int],
    changes: dict[str, Any],
    max_tiles: int | None,
    found: tuple[int, int, int],
    internvl: InternVlProcessorConfig,
) -> None:
    config = msgspec.structs.replace(internvl, **changes)
    assert internvl3_5.choose_grid(size, config, max_tiles=max_tiles) == found


def test_fewer_tiles_than_the_checkpoint_cuts(internvl: InternVlProcessorConfig) -> None:
    config = msgspec.structs.replace(internvl, min_tiles=3)
    assert internvl3_5.choose_grid((448, 448), config, max_tiles=3)[2] == 4
    with pytest.raises(InvalidRequest, match=r"max_tiles 2: expected at least 3 local tile\(s\)"):
        internvl3_5.choose_grid((448, 448), config, max_tiles=2)


@pytest.mark.parametrize(("changes", "tiles"), [({}, 13), ({"use_thumbnail": False}, 12), ({"max_tiles": 1}, 1)])
def test_the_most_tiles_of_a_picture(changes: dict[str, Any], tiles: int, internvl: InternVlProcessorConfig) -> None:
    config = msgspec.structs.replace(internvl, **changes)
    assert internvl3_5.picture_tiles(config) == tiles
    assert internvl3_5.most_visual_tokens(config, tiles) == tiles * 256


def test_places_of_the_visual_tokens(internvl: InternVlProcessorConfig) -> None:
    """Two tiles side by side and the thumbnail, of 2 x 2 tokens each."""
    config = msgspec.structs.replace(internvl, tokens_per_tile=4)
    inputs = ModelInputs(no_ids(), no_ids(), {}, tile_counts=(3,), picture_sizes=((896, 448),))
    found = internvl3_5.picture_map(config, inputs)
    assert (found.side, found.pitch, found.cells.tolist()) == (2, 224, list(range(12)))
    views = {name: view.tolist() for name, view in found.views.items()}
    assert views == {"local view": [[0, 1, 4, 5], [2, 3, 6, 7]], "thumbnail": [[8, 9], [10, 11]]}
    single = internvl3_5.picture_map(config, replace(inputs, tile_counts=(1,), picture_sizes=((448, 448),)))
    assert {name: view.tolist() for name, view in single.views.items()} == {"the view": [[0, 1], [2, 3]]}
