# SPDX-License-Identifier: Apache-2.0
"""Tiling and pixels of DeepSeek-VL2 against the recorded outputs of its official processor."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request import deepseek_vl2
from fastmmoe.runtime.request import internvl as internvl3_5
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig
from fastmmoe.runtime.request.deepseek_vl2 import deepseek_vl2_layout, select_best_resolution
from fastmmoe.runtime.request.image_reader import open_image
from fastmmoe.runtime.request.inputs import ModelInputs, no_ids
from tests.support.golden import GoldenArray
from tests.support.model_inputs import STATISTICS_TOLERANCE, TOLERANCE


def test_best_resolution_of_every_recorded_size(
    deepseek: DeepseekVl2ProcessorConfig, golden_array: GoldenArray
) -> None:
    file = "dsvl2-inputs/select_best_resolution.npz"
    sizes, expected = golden_array(file, "size_wh").tolist(), golden_array(file, "best_wh").tolist()
    assert len(sizes) == 415
    found = [list(select_best_resolution((w, h), deepseek.candidate_resolutions)) for w, h in sizes]
    assert found == expected


@pytest.mark.parametrize(
    ("size", "candidates", "expected"),
    [
        ((100, 100), [(768, 768), (384, 384)], (384, 384)),  # both hold all of it: the smaller waste
        ((200, 200), [(384, 768), (768, 384)], (384, 768)),  # equal in both: the earlier
        ((200, 200), [(768, 384), (384, 768)], (768, 384)),
        ((2006, 3010), [(768, 1152), (768, 1536)], (768, 1536)),  # 767.7 wide in the first, which counts as 767
        ((2581, 1721), [(1152, 768), (1152, 1152)], (1152, 1152)),
        ((2269, 567), [(1536, 384), (1920, 384)], (1920, 384)),  # 383.8 high in the first
    ],
)
def test_ties_and_truncation_of_the_best_resolution(
    size: tuple[int, int], candidates: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    assert select_best_resolution(size, candidates) == expected


def test_a_picture_that_vanishes_in_every_candidate_gets_the_first() -> None:
    assert select_best_resolution((1, 100_000), [(384, 384), (384, 768)]) == (384, 384)


@pytest.mark.parametrize(
    ("case", "names", "tiled"),
    [("single", ["img0_700x500"], True), ("batch2", ["img2_300x260"], True)],
)
def test_deepseek_pixels(
    case: str,
    names: list[str],
    tiled: bool,
    deepseek: DeepseekVl2ProcessorConfig,
    golden: Path,
    golden_array: GoldenArray,
) -> None:
    expected = golden_array(f"dsvl2-inputs/inputs_{case}.npz", "images")[0]
    image = open_image(golden / "dsvl2-inputs" / f"{names[0]}.png")
    pixels, grid = deepseek_vl2.cut_tiles(image, deepseek, tiled=tiled)
    assert pixels.dtype == np.float32
    assert 1 + grid[0] * grid[1] == len(pixels)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "names", "tiled"),
    [
        ("multi3", ["img0_700x500", "img1_420x980", "img2_300x260"], False),
        ("two", ["img0_700x500", "img1_420x980"], True),
    ],
)
def test_deepseek_pixel_samples(
    case: str,
    names: list[str],
    tiled: bool,
    deepseek: DeepseekVl2ProcessorConfig,
    golden: Path,
    golden_array: GoldenArray,
) -> None:
    file = f"dsvl2-inputs/inputs_{case}.npz"
    tiles = [
        deepseek_vl2.cut_tiles(open_image(golden / "dsvl2-inputs" / f"{name}.png"), deepseek, tiled=tiled)
        for name in names
    ]
    assert [list(grid) for _, grid in tiles] == golden_array(file, "images_spatial_crop")[0].tolist()
    pixels = np.concatenate([p for p, _ in tiles])
    sample = golden_array(file, "images_sample")[0]
    np.testing.assert_allclose(pixels[..., ::16, ::16], sample, rtol=0, atol=TOLERANCE)
    statistics = np.stack([pixels.mean((1, 2, 3)), pixels.std((1, 2, 3))])
    expected = golden_array(file, "images_mean_std")[:, 0]
    np.testing.assert_allclose(statistics, expected, rtol=0, atol=STATISTICS_TOLERANCE)


@pytest.mark.parametrize(("size", "grid"), [((3456, 384), (9, 1)), ((384, 3456), (1, 9)), ((1150, 1150), (3, 3))])
def test_deepseek_tiles_of_a_picture_in_reading_order(
    size: tuple[int, int], grid: tuple[int, int], deepseek: DeepseekVl2ProcessorConfig
) -> None:
    ramp = np.add.outer(np.arange(size[1]) // 384 * 30, np.arange(size[0]) // 384 * 10).astype(np.uint8)
    image = open_image(np.repeat(ramp[:, :, None], 3, axis=2))
    pixels, found = deepseek_vl2.cut_tiles(image, deepseek, tiled=True)
    assert found == grid
    centres = np.round((pixels[1:, 0, 192, 192] * 0.5 + 0.5) * 255).astype(int)
    expected = [row * 30 + column * 10 for row in range(grid[1]) for column in range(grid[0])]
    assert centres.tolist() == expected


@pytest.mark.parametrize(("max_tiles", "grid"), [(1, (1, 1)), (2, (2, 1)), (3, (2, 1)), (4, (2, 2)), (100, (2, 2))])
def test_deepseek_max_tiles_limits_the_candidates(
    max_tiles: int, grid: tuple[int, int], deepseek: DeepseekVl2ProcessorConfig, golden: Path
) -> None:
    image = open_image(golden / "dsvl2-inputs" / "img0_700x500.png")
    pixels, found = deepseek_vl2.cut_tiles(image, deepseek, tiled=True, max_tiles=max_tiles)
    assert found == grid
    assert len(pixels) == 1 + grid[0] * grid[1]


def test_layout_of_one_wide_picture_by_hand() -> None:
    # Tiles of 2x2 tokens: global 0..3, left local tile 4..7, right local tile 8..11; newline 12, separator 13.
    whole, local = [0, 1, 12, 2, 3, 12], [4, 5, 8, 9, 12, 6, 7, 10, 11, 12]
    assert deepseek_vl2_layout([(2, 1)], 2, global_view_first=True).tolist() == [*whole, 13, *local]
    assert deepseek_vl2_layout([(2, 1)], 2, global_view_first=False).tolist() == [*local, 13, *whole]


@pytest.mark.parametrize(
    ("grids", "count"),
    [([(1, 1)], 421), ([(2, 3)], 1429), ([(3, 3)], 2017), ([(9, 1)], 1989), ([(1, 9)], 2101), ([(1, 1), (2, 2)], 1444)],
)
def test_layout_uses_every_feature_once(grids: list[tuple[int, int]], count: int) -> None:
    layout = deepseek_vl2_layout(grids, 14, global_view_first=True)
    features = 196 * sum(1 + wide * high for wide, high in grids)
    assert layout.dtype == np.int32
    assert len(layout) == count
    assert np.array_equal(np.sort(layout[layout < features]), np.arange(features))
    assert np.count_nonzero(layout == features) == sum(14 + 14 * high for _, high in grids)
    assert np.count_nonzero(layout == features + 1) == len(grids)


def test_unusable_requests(deepseek: DeepseekVl2ProcessorConfig, internvl: InternVlProcessorConfig) -> None:
    image = Image.new("RGB", (40, 30))
    with pytest.raises(InvalidRequest, match=r"max_tiles 0: expected at least 1 local tile"):
        deepseek_vl2.cut_tiles(image, deepseek, tiled=True, max_tiles=0)
    with pytest.raises(InvalidRequest, match=r"max_tiles -1: expected at least 1 local tile"):
        internvl3_5.cut_tiles(image, internvl, max_tiles=-1)
    for size in ((1, 1000), (1000, 1)):
        with pytest.raises(InvalidRequest, match=r"too thin to fit into 384x384 pixels; crop it"):
            deepseek_vl2.cut_tiles(Image.new("RGB", size), deepseek, tiled=True)


def test_the_most_tiles_of_a_picture(deepseek: DeepseekVl2ProcessorConfig) -> None:
    config = msgspec.structs.replace(deepseek, candidate_resolutions=((384, 384), (768, 384), (768, 1152)))
    assert deepseek_vl2.picture_tiles(config) == 7
    # A picture has two tiles at the least, and one separator.
    assert [deepseek_vl2.most_visual_tokens(config, tiles) for tiles in (2, 3, 7)] == [421, 631, 1473]


def test_where_a_tokenizer_is_known(deepseek: DeepseekVl2ProcessorConfig) -> None:
    assert deepseek_vl2.has_tokenizer(deepseek) is True
    assert deepseek_vl2.has_tokenizer(msgspec.structs.replace(deepseek, image_token_id=None)) is False


@pytest.mark.parametrize("global_view_first", [True, False])
def test_places_of_the_visual_tokens(global_view_first: bool, deepseek: DeepseekVl2ProcessorConfig) -> None:
    """Tiles of 2 x 2 tokens, two of them side by side; rows end with a newline, the separator is below a view."""
    config = msgspec.structs.replace(
        deepseek,
        candidate_resolutions=((16, 16), (32, 16)),
        patch_size=4,
        downsample_ratio=2,
        global_view_first=global_view_first,
    )
    inputs = deepseek_vl2.vision_inputs(config, np.zeros((3, 3, 16, 16), np.float32), [(2, 1)])
    found = deepseek_vl2.picture_map(config, ModelInputs(no_ids(), no_ids(), inputs))
    assert (found.side, found.pitch) == (2, 8)
    cells = {name: np.where(view < 0, -9, found.cells[view]).tolist() for name, view in found.views.items()}
    whole, local = [[0, 1, -1], [2, 3, -1]], [[4, 5, 8, 9, -1], [6, 7, 10, 11, -1]]
    below = {"global view": [-1, -9, -9], "local view": [-1, -9, -9, -9, -9]}
    first = "global view" if global_view_first else "local view"
    expected = {"global view": whole, "local view": local}
    assert next(iter(found.views)) == first
    assert cells == expected | {first: [*expected[first], below[first]]}
