# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.exporter.ops.sparse_moe.tile_order import tile_packed, tile_weights, untile_packed, untile_weights


def test_gate_and_up_panels_take_turns() -> None:
    E, I, H = 2, 20, 10  # noqa: E741
    values = np.random.default_rng(0).integers(-127, 128, (E, 2 * I, H)).astype(np.int8)
    tiles = tile_weights(values, is_gate_up=True)
    assert tiles.shape == (E, 2, 2, 3, 16, 4)
    for half, row, column in ((0, 0, 0), (0, 19, 9), (1, 3, 7), (1, 17, 4)):
        found = tiles[:, row // 16, half, column // 4, row % 16, column % 4]
        np.testing.assert_array_equal(found, values[:, half * I + row, column])
    np.testing.assert_array_equal(untile_weights(tiles, I, H, is_gate_up=True), values)


def test_packed_weights_come_back() -> None:
    weights = np.random.default_rng(1).standard_normal((2, 40, 72)).astype(np.float32)
    for weight_format in ("int8", "int4"):
        packed = quantise(weights, weight_format, 32, zero_points=True)
        for is_gate_up in (True, False):
            tiles = tile_packed(packed, is_gate_up=is_gate_up)
            panels = (2, 2, 2) if is_gate_up else (2, 3)
            assert tiles.scale.shape == (*panels, 3, 16)
            again = untile_packed(tiles, 20 if is_gate_up else 40, packed.values.shape[-1], is_gate_up=is_gate_up)
            for name in ("values", "scale", "zero"):
                np.testing.assert_array_equal(getattr(again, name), getattr(packed, name))
