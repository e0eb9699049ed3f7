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

# Of CUDA kernels: K of int8 and int4. Wide: more depth than is in flight at a time, a last group that is shorter than
# the others. Deep: more steps than a block has warps.
KERNEL_DEPTHS = {"smallest": (16, 32), "wide": (144, 160), "deep": (1040, 1056)}
# T, N, depth, and what follows the sums. 130 columns are a tile and two, 34 are two pieces of 16 and two; of 64 rows
# there are 32 tiles or none.
KERNEL_CASES: dict[str, tuple[int, int, str, dict[str, Any]]] = {
    "no rows": (0, 34, "smallest", {}),
    "1 row": (1, 50, "deep", {"has_bias": False}),
    "3 rows": (3, 50, "wide", {"activation": "gelu"}),
    "8 rows": (8, 34, "wide", {"activation": "gelu_tanh", "has_residual": True}),
    "8 rows, deep": (8, 16, "deep", {"has_bias": False, "has_residual": True}),
    "9 rows": (9, 130, "wide", {}),
    "16 rows": (16, 34, "deep", {"activation": "gelu", "has_residual": True}),
    "17 rows": (17, 2, "smallest", {"has_bias": False}),
    "64 rows": (64, 130, "wide", {"activation": "gelu_tanh", "has_residual": True}),
    "200 rows": (200, 130, "wide", {}),
    "tiles of 64 rows": (200, 1026, "smallest", {"activation": "gelu_tanh", "has_residual": True}),
    "tiles of 64 rows, wide": (130, 1410, "wide", {"has_bias": False}),
}


def packing_id(packing: LinearPacking) -> str:
    """In names of tests: int8-32-zeros."""
    return f"{packing.weight_format}-{packing.group_size}{'-zeros' if packing.zero_points else ''}"


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
    size: str | tuple[int, int, int],
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
        size: a name of SIZES, or T, N and K.
        dtype: of all other inputs that are floating-point.
    """
    T, N, K = SIZES[size] if isinstance(size, str) else size
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


def depth_of(packing: LinearPacking, name: str) -> int:
    """K of a depth by its name."""
    return KERNEL_DEPTHS[name][packing.weight_format == "int4"]


def kernel_case(name: str, packing: LinearPacking, dtype: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    """`linear_case` of KERNEL_CASES."""
    T, N, depth, after = KERNEL_CASES[name]
    return linear_case(packing, (T, N, depth_of(packing, depth)), dtype=dtype, **after)
