# SPDX-License-Identifier: Apache-2.0
"""FmmLinear in NumPy: what every kernel is held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.exporter.ops.quantise import QuantisedWeights, check_packed, dequantise
from fastmmoe.exporter.ops.tiles import WORD_COLUMNS, from_panels, from_tiles
from fastmmoe.runtime.types import Array


def linear_weights(inputs: dict[str, Array], columns: int, attributes: dict[str, Any]) -> Array:
    """What the stored weights stand for, float32 [N, K].

    Args:
        inputs: by the contract's names.
        columns: K.
    """
    if attributes[LAYOUT] != TILES:
        return inputs["weight"].astype(np.float32)
    N, weight_format = attributes["out_features"], attributes["weight_format"]
    if weight_format == "float":
        return from_tiles(inputs["weight_tiles"], N, columns).astype(np.float32)
    is_packed = weight_format == "int4"
    values = from_tiles(inputs["weight_tiles"], N, -(-columns // WORD_COLUMNS["int4"]) * 4 if is_packed else columns)
    scale, zero = from_panels(inputs["scale"], N), inputs.get("zero")
    quantised = QuantisedWeights(values, scale, None if zero is None else from_panels(zero, N))
    return dequantise(quantised, weight_format, attributes["group_size"])[:, :columns]


def linear_reference(inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
    """FmmLinear in NumPy, computed in float32; inputs by the contract's names.

    Raises:
        ValueError: attributes or inputs outside the contract.
    """
    LINEAR.check_attributes(attributes)
    LINEAR.check_inputs(attributes, inputs)
    check_packed(LINEAR.name, inputs, attributes["weight_format"])
    x = inputs["x"]
    y: Array = x @ linear_weights(inputs, x.shape[1], attributes).T
    y = _activate(y + inputs["bias"] if "bias" in inputs else y, attributes["activation"])
    return y + inputs["residual"] if "residual" in inputs else y


def _activate(x: Array, activation: str) -> Array:
    """In float64, so that it is right to the last bits of what it gets."""
    if activation == "none":
        return x
    wide = x.astype(np.float64)
    if activation == "gelu":
        share = 1 + np.vectorize(math.erf, otypes=[np.float64])(wide / math.sqrt(2))
    else:
        share = 1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    found: Array = (wide / 2 * share).astype(x.dtype)
    return found
