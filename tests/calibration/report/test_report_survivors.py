# SPDX-License-Identifier: Apache-2.0
"""Visual tokens at their places in the pictures, and the colours of their fates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.calibration.report.maps import draw_similarity
from fastmmoe.calibration.report.stages import Fate, Stage
from fastmmoe.calibration.report.survivors import CELL, DROPPED, GONE, MERGED, draw_survivors, find_views
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig
from fastmmoe.runtime.request.deepseek_vl2 import deepseek_vl2_layout
from fastmmoe.runtime.request.inputs import ModelInputs

SIDE, PITCH = 3, 28
TILE = SIDE * PITCH


def deepseek_config(global_view_first: bool = True) -> DeepseekVl2ProcessorConfig:
    return DeepseekVl2ProcessorConfig(
        candidate_resolutions=((TILE, TILE), (2 * TILE, TILE)),
        patch_size=14,
        downsample_ratio=2,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        pad_color=(127, 127, 127),
        global_view_first=global_view_first,
        template="deepseek",
        image_token="<image>",
        image_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
        special_tokens=(),
        stop_token_ids=(2,),
        vocab_size=10,
        max_position_embeddings=100,
    )


def internvl_config() -> InternVlProcessorConfig:
    return InternVlProcessorConfig(
        tile_size=TILE,
        tokens_per_tile=SIDE * SIDE,
        min_tiles=1,
        max_tiles=6,
        use_thumbnail=True,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        template="internvl2_5",
        image_token="<I>",
        image_start_token="<s>",
        image_end_token="</s>",
        image_token_id=1,
        bos_token_id=None,
        pad_token_id=None,
        stop_token_ids=(2,),
        vocab_size=10,
        max_position_embeddings=100,
    )


def tiles(count: int) -> np.ndarray:
    """Normalised tiles [n, 3, S, S]; the part of token c of tile t has the grey value 20 t + 2 c."""
    cells = np.arange(SIDE * SIDE).reshape(SIDE, SIDE).repeat(PITCH, 0).repeat(PITCH, 1)
    values = 20 * np.arange(count)[:, None, None] + 2 * cells
    return (np.repeat(values[:, None], 3, axis=1) / 255 * 2 - 1).astype(np.float32)


def deepseek_inputs(wide: int, global_view_first: bool = True) -> ModelInputs:
    layout = deepseek_vl2_layout([(wide, 1)], SIDE, global_view_first=global_view_first)
    pixels = tiles(1 + wide)
    V = len(layout)
    vision: dict[str, Any] = {"pixel_values": pixels, "layout_index": layout}
    return ModelInputs(np.zeros(V + 4, np.int32), np.arange(V, dtype=np.int32), vision, (len(pixels),), ((9, 9),))


@pytest.mark.parametrize("global_view_first", [True, False])
def test_deepseek_tokens_are_each_at_one_place(global_view_first: bool) -> None:
    views = find_views(deepseek_inputs(2, global_view_first), deepseek_config(global_view_first))
    shapes = {view.name: view.tokens.shape for view in views}
    first = views[0].name
    # The first view has a row more, for the separator.
    expected = {"global view": (SIDE, SIDE + 1), "local view": (SIDE, 2 * SIDE + 1)}
    expected[first] = (SIDE + 1, expected[first][1])
    assert shapes == expected
    assert first == ("global view" if global_view_first else "local view")
    placed = np.concatenate([view.tokens.ravel() for view in views])
    assert sorted(placed[placed >= 0].tolist()) == list(range(SIDE * (SIDE + 1) + 1 + SIDE * (2 * SIDE + 1)))


def test_deepseek_patches_are_what_the_model_sees() -> None:
    whole, local = find_views(deepseek_inputs(2), deepseek_config())
    for view, tile in ((whole, 0), (local, 1)):
        grey = view.patches[view.tokens[:SIDE, :SIDE]][..., 0]
        assert (grey == (20 * tile + 2 * np.arange(9).reshape(3, 3))[..., None, None]).all()
    right = local.patches[local.tokens[:, SIDE : 2 * SIDE]][..., 0]
    assert (right == (40 + 2 * np.arange(9).reshape(3, 3))[..., None, None]).all()


def test_internvl_tiles_are_put_together() -> None:
    """A picture twice as wide as high: two local tiles side by side and the thumbnail."""
    pixels = tiles(3)
    inputs = ModelInputs(
        np.zeros(30, np.int32), np.arange(27, dtype=np.int32), {"pixel_values": pixels}, (3,), ((200, 100),)
    )
    local, thumbnail = find_views(inputs, internvl_config())
    assert (local.name, thumbnail.name) == ("local view", "thumbnail")
    assert local.tokens[0].tolist() == [0, 1, 2, 9, 10, 11]
    assert thumbnail.tokens.tolist() == np.arange(18, 27).reshape(3, 3).tolist()
    assert (local.patches[10] == 22).all()


def test_several_pictures_are_refused() -> None:
    inputs = ModelInputs(np.zeros(3, np.int32), np.zeros(0, np.int32), {}, (2, 2))
    with pytest.raises(InvalidRequest, match="the prompt has 2 pictures: expected one"):
        find_views(inputs, deepseek_config())


def color_at(image: Image.Image, column: int, panel: int, panel_width: int, top: int) -> tuple[int, ...]:
    x = 14 + panel * (panel_width + 18) + column * CELL + CELL // 2
    color: Any = image.getpixel((x, top + CELL // 2))
    return tuple(color)


def near(color: tuple[int, ...], base: tuple[int, ...], weight: float) -> bool:
    """Whether a colour is that of a fate over a black patch."""
    return all(abs(a - weight * b) <= 1 for a, b in zip(color, base, strict=True))


def test_colours_tell_the_fates() -> None:
    inputs = deepseek_inputs(1)
    inputs.vision_inputs["pixel_values"][:] = -1  # black
    V = len(inputs.visual_index)
    fates = np.full(V, Fate.KEPT, np.uint8)
    fates[:4] = [Fate.MERGED, Fate.DROPPED, Fate.GONE, Fate.KEPT]
    stage = Stage(1, fates, np.linspace(0.5, 1, V).astype(np.float32))
    image = draw_survivors(inputs, deepseek_config(), [stage])
    width = (SIDE + 1) * CELL
    top = next(y for y in range(image.height) if color_at(image, 0, 0, width, y) == (0, 0, 0))
    merged, dropped, gone = (color_at(image, column, 1, width, top) for column in range(3))
    assert near(merged, MERGED, 0.65)
    assert near(dropped, DROPPED, 0.75)
    assert near(gone, GONE, 0.88)


def test_similarity_has_a_colour_for_every_living_token() -> None:
    inputs = deepseek_inputs(1)
    V = len(inputs.visual_index)
    similarity = np.linspace(0.2, 1, V).astype(np.float32)
    similarity[1:3] = np.nan, 0.0
    image = draw_similarity(inputs, deepseek_config(), [Stage(1, np.zeros(V, np.uint8), similarity)])

    def colors(column: int) -> set[int]:
        x = 14 + (SIDE + 1) * CELL + 18 + column * CELL + CELL // 2
        return set(np.asarray(image)[:, x, 0].tolist())

    assert GONE[0] in colors(1)
    # A window of one token, of similarity 0, looks like the least similar one.
    assert {0} <= colors(0) & colors(2)
