# SPDX-License-Identifier: Apache-2.0
"""Tiles as matrices in ONNX operators, through the body of FmmLinear: every byte of every format."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.runtime.types import Array
from tests.support.operator_bodies import run_body


@pytest.mark.parametrize(("weight_format", "middle"), [("int8", 0), ("int4", 8)])
def test_every_byte(weight_format: str, middle: int) -> None:
    packing = LinearPacking(weight_format, 32)  # type: ignore[arg-type]
    words, columns = (64, 256) if weight_format == "int8" else (64, 512)
    tiles = np.zeros((1, words, 16, 4), np.int8)
    tiles[0, :, 3] = np.arange(256, dtype=np.uint8).view(np.int8).reshape(words, 4)
    inputs: dict[str, Array] = {
        "x": np.eye(columns, dtype=np.float32),
        "weight": tiles,
        "scale": np.ones((1, columns // 32, 16), np.float16),
    }
    (y,) = run_body(LINEAR, packing.attributes(16, has_bias=False), list(inputs.values()))
    found = y[:, 3] + middle
    if weight_format == "int8":
        np.testing.assert_array_equal(found, np.arange(256, dtype=np.uint8).view(np.int8))
        return
    # A little-endian word of 8 nibbles: columns 0, 2, 4, 6, 1, 3, 5, 7.
    nibbles = np.arange(256, dtype=np.uint8).reshape(words, 4).view("<u4") >> (4 * np.arange(8, dtype=np.uint32)) & 15
    np.testing.assert_array_equal(found.reshape(words, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]], nibbles)
