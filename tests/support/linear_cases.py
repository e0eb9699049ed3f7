# SPDX-License-Identifier: Apache-2.0
"""The table of cases of FmmLinear, for its reference, body, torch op and kernel."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import numpy as np

from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.runtime.types import Array

INTEGERS: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
PACKINGS = [
    LinearPacking("bf16"),
    *(
        LinearPacking(weight_format, group_size, zero_points)
        for weight_format in INTEGERS
        for group_size, zero_points in itertools.product((32, 64, 128), (False, True))
    ),
]
IN_ROWS = [dataclasses.replace(packing, is_tiled=False) for packing in PACKINGS]
# T, N and K: none is a multiple of anything; whole panels and groups; whole words of int4; one of each; more outputs
# than an item has.
SIZES = {
    "odd": (5, 35, 71),
    "whole": (3, 48, 256),
    "words": (5, 35, 72),
    "one": (1, 1, 1),
    "decode": (1, 1030, 129),
    "many rows": (300, 33, 130),
    "no rows": (0, 20, 40),
}


def logical_attributes(out_features: int, *, has_bias: bool) -> dict[str, Any]:
    """Of floating-point weights as they are."""
    return {
        "out_features": out_features,
        "weight_format": "float",
        "weight_layout": "logical",
        "group_size": 0,
        "zero_points": 0,
        "has_bias": int(has_bias),
        "activation": "none",
        "has_residual": 0,
    }


def linear_case(
    packing: LinearPacking | None,
    size: str,
    *,
    has_bias: bool = True,
    weight_dtype: Any = np.float32,
    activation: str = "none",
    has_residual: bool = False,
    dtype: Any = np.float32,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inputs in the contract's order, and attributes.

    Args:
        packing: None: weights as they are, of weight_dtype.
        dtype: of all other inputs that are floating-point.
    """
    T, N, K = SIZES[size]
    rng = np.random.default_rng(T + N + K)
    weights = (rng.standard_normal((N, K)) / np.sqrt(K)).astype(np.float32)
    # Groups of other sizes and means.
    weights *= 1 + np.arange(K) // 32
    given = {"x": rng.standard_normal((T, K)).astype(dtype)}
    given |= {"bias": rng.standard_normal(N).astype(dtype)} if has_bias else {}
    if packing is None:
        attributes = logical_attributes(N, has_bias=has_bias)
        given["weight"] = weights.astype(weight_dtype)
    else:
        attributes = packing.attributes(N, has_bias=has_bias)
        given |= packing.pack(weights)
    attributes |= {"activation": activation, "has_residual": int(has_residual)}
    given |= {"residual": rng.standard_normal((T, N)).astype(dtype)} if has_residual else {}
    return {tensor.name: given[tensor.name] for tensor in LINEAR.inputs_for(attributes)}, attributes
