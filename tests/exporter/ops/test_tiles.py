# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops.tiles import from_panels, from_tiles, to_panels, to_tiles
from fastmmoe.runtime.types import Array


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("shape", [(1, 1), (16, 4), (35, 21), (3, 2, 40, 18)])
def test_tiles(shape: tuple[int, ...], dtype: type) -> None:
    values: Array = np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)
    tiles = to_tiles(values)
    width = 4 // np.dtype(dtype).itemsize
    rows, columns = shape[-2:]
    assert tiles.shape == (*shape[:-2], -(-rows // 16), -(-columns // width), 16, width)
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        panel = tiles[..., row // 16, column // width, row % 16, column % width]
        np.testing.assert_array_equal(panel, values[..., row, column])
    np.testing.assert_array_equal(from_tiles(tiles, rows, columns), values)
    assert np.count_nonzero(tiles.astype(np.float32)) == np.count_nonzero(values.astype(np.float32))


def test_panels() -> None:
    scales = np.arange(2 * 19 * 3).reshape(2, 19, 3).astype(np.float16)
    panels = to_panels(scales)
    assert panels.shape == (2, 2, 3, 16)
    np.testing.assert_array_equal(panels[1, 1, :, 2], scales[1, 18])
    np.testing.assert_array_equal(from_panels(panels, 19), scales)
