# SPDX-License-Identifier: Apache-2.0
"""Inputs of the graphs: compared, and tensors that are changed before they become some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.types import Array

TOLERANCE = 1e-6  # float32 pixels
STATISTICS_TOLERANCE = 2e-6  # float32 mean and deviation of half a million pixels, summed in another order


def assert_same_inputs(found: ModelInputs, expected: ModelInputs) -> None:
    """The same ids, positions, tiles and inputs of the vision graph; pixels within TOLERANCE."""
    assert found.input_ids.dtype == found.visual_index.dtype == np.int32
    np.testing.assert_array_equal(found.input_ids, expected.input_ids)
    np.testing.assert_array_equal(found.visual_index, expected.visual_index)
    assert found.tile_counts == expected.tile_counts
    assert found.vision_inputs.keys() == expected.vision_inputs.keys()
    for name, array in expected.vision_inputs.items():
        assert found.vision_inputs[name].dtype == array.dtype
        np.testing.assert_allclose(found.vision_inputs[name], array, rtol=0, atol=TOLERANCE)


def changed(name: str, index: Any, value: Any) -> Callable[[dict[str, Array]], None]:
    """Function tensors -> None: puts the value at an index of one of them."""

    def change(tensors: dict[str, Array]) -> None:
        tensors[name][index] = value

    return change


def replaced(name: str, function: Callable[[Array], Array]) -> Callable[[dict[str, Array]], None]:
    """Function tensors -> None: puts what the function makes of one of them in its place."""

    def change(tensors: dict[str, Array]) -> None:
        tensors[name] = function(tensors[name])

    return change
