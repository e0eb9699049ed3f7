# SPDX-License-Identifier: Apache-2.0
"""Pixels of tiles: bounds of their number, normalisation, order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.request import deepseek_vl2
from fastmmoe.runtime.request import internvl as internvl3_5
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig
from fastmmoe.runtime.request.image_reader import open_image
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
