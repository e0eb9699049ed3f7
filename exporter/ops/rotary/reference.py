# SPDX-License-Identifier: Apache-2.0
"""FmmRotary in NumPy, in float64 where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import Attributes
from fastmmoe.exporter.ops.rotary.contract import ROTARY
from fastmmoe.runtime.types import Array


def rotary_reference(attributes: Attributes, inputs: Mapping[str, Array], dtype: Any = np.float32) -> Array:
    """The output [T, N, 2P] of FmmRotary; inputs by the contract's names.

    Args:
        dtype: of everything that is computed, and of the result.
    Raises:
        ValueError: the contract does not allow the attributes or inputs.
    """
    ROTARY.check_attributes(attributes)
    ROTARY.check_inputs(attributes, inputs)
    x, cos, sin = (inputs[name].astype(dtype) for name in ("x", "cos", "sin"))
    if attributes["has_norm"]:
        mean = (x * x).mean(-1, keepdims=True) + dtype(attributes["epsilon"])
        x = x / np.sqrt(mean) * inputs["norm"].astype(dtype)
    pairs = cos.shape[2]
    a, b = x[..., :pairs], x[..., pairs:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
