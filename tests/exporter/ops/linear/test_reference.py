# SPDX-License-Identifier: Apache-2.0
"""The reference of FmmLinear against plain products."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops import linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.runtime.types import Array
from tests.support.linear_cases import linear_case


def test_weights_as_they_are() -> None:
    inputs, attributes = linear_case(None, "odd")
    expected = inputs["x"].astype(np.float64) @ inputs["weight"].astype(np.float64).T + inputs["bias"]
    np.testing.assert_allclose(linear_reference(inputs, attributes), expected, rtol=0, atol=1e-5)


def test_scales_and_zeros_outside_the_contract() -> None:
    inputs, attributes = linear_case(LinearPacking("int4", 32, zero_points=True), "odd")
    for name, value, message in (("scale", np.inf, "scale has inf, expected finite"), ("zero", 99, "zero has 99")):
        wrong = inputs[name].copy()
        wrong.flat[3] = value
        with pytest.raises(ValueError, match=f"^FmmLinear: {message}"):
            linear_reference(inputs | {name: wrong}, attributes)


def test_columns_by_hand() -> None:
    """Outputs 0 and 17 in two panels, scale and zero of each of two groups."""
    inputs, attributes = linear_case(None, "one", has_bias=False)
    attributes = attributes | {"out_features": 18, "weight_format": "int8", "weight_layout": "tiles"}
    attributes |= {"group_size": 32, "zero_points": 1}
    tiles, scale, zero = (
        np.zeros((2, 9, 16, 4), np.int8),
        np.zeros((2, 2, 16), np.float16),
        np.zeros((2, 2, 16), np.int8),
    )
    tiles[0, 0, 0, 1], scale[0, 0, 0] = 5, 2  # output 0, column 1
    tiles[1, 8, 1, 2], scale[1, 1, 1], zero[1, 1, 1] = 7, 0.5, 3  # output 17, column 34; columns 32 to 35 have zeros
    inputs = {"x": np.eye(36, dtype=np.float32), "weight": tiles, "scale": scale, "zero": zero}
    y = linear_reference(inputs, attributes)
    expected = np.zeros((36, 18), np.float32)
    expected[1, 0], expected[34, 17] = 10, 2
    expected[[32, 33, 35], 17] = -1.5
    np.testing.assert_array_equal(y, expected)


def test_rows_by_hand() -> None:
    """A word of int4 in the second of two groups, in float16."""
    attributes = LinearPacking("int4", 32, zero_points=True, is_tiled=False).attributes(2, has_bias=False)
    weight, scale, zero = np.zeros((2, 20), np.int8), np.zeros((2, 2), np.float16), np.zeros((2, 2), np.int8)
    weight[1, 16:] = 0x21, 0x43, 0x65, 0x77  # columns 32 to 39: 1, 5, 2, 6, 3, 7, 4, 7
    scale[1, 1], zero[1, 1] = 0.5, 3
    inputs: dict[str, Array] = {"x": np.eye(40, dtype=np.float16), "weight": weight, "scale": scale, "zero": zero}
    expected = np.zeros((40, 2), np.float16)
    expected[32:, 1] = (np.array([1, 5, 2, 6, 3, 7, 4, 7]) - 3) / 2
    y = linear_reference(inputs, attributes)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_rounds_once(activation: str) -> None:
    """A float16 result is that of float32 inputs, rounded."""
    inputs, attributes = linear_case(
        LinearPacking("int8", 32, is_tiled=False), "odd", activation=activation, has_residual=True, dtype=np.float16
    )
    names = ("x", "bias", "residual")
    wide = inputs | {name: inputs[name].astype(np.float32) for name in names}
    expected = linear_reference(wide, attributes).astype(np.float16)
    np.testing.assert_array_equal(linear_reference(inputs, attributes), expected)
