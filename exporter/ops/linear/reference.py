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
    N, weight_format = attributes["out_features"], attributes["weight_format"]
    values, scale, zero = (inputs.get(name) for name in ("weight", "scale", "zero"))
    assert values is not None
    if attributes[LAYOUT] == TILES:
        values = from_tiles(values, N, -(-columns // WORD_COLUMNS["int4"]) * 4 if weight_format == "int4" else columns)
        scale, zero = (None if part is None else from_panels(part, N) for part in (scale, zero))
    if weight_format == "float":
        return values.astype(np.float32)
    assert scale is not None
    return dequantise(QuantisedWeights(values, scale, zero), weight_format, attributes["group_size"])[:, :columns]


def linear_reference(inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
    """FmmLinear in NumPy, computed in float32; inputs by the contract's names.

    Raises:
        ValueError: attributes or inputs outside the contract.
    """
    LINEAR.check_attributes(attributes)
    LINEAR.check_inputs(attributes, inputs)
    check_packed(LINEAR.name, inputs, attributes["weight_format"])
    x, bias, residual = (inputs.get(name) for name in ("x", "bias", "residual"))
    assert x is not None
    y: Array = x.astype(np.float32) @ linear_weights(inputs, x.shape[1], attributes).T
    y = _activate(y if bias is None else y + bias.astype(np.float32), attributes["activation"])
    return (y if residual is None else y + residual.astype(np.float32)).astype(x.dtype)


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
