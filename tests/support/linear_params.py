# SPDX-License-Identifier: Apache-2.0
"""LinearKernelParams of plugins/linear/cuda/kernel.h, for calls of kernels without a framework."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.runtime.types import Array
from tests.support.attention_params import FLOAT_TYPES
from tests.support.moe_params import C_TYPES, encoded_attributes

_BOOLEANS = ("zero_points", "has_bias", "has_residual")
# Of the output's greatest value. The reference computes in float, with integer weights that are not rounded.
TOLERANCES = {FLOAT_TYPES[1]: 1e-3, FLOAT_TYPES[2]: 8e-3}


class LinearAttributes(ctypes.Structure):
    """Its members and enumerations are in the order of the contract."""

    _fields_ = [(a.name, ctypes.c_bool if a.name in _BOOLEANS else C_TYPES[a.kind]) for a in LINEAR.attributes]


class LinearParams(ctypes.Structure):
    """LinearKernelParams."""

    _fields_ = [
        ("attributes", LinearAttributes),
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("T", "K", "N")),
        *((tensor.name, ctypes.c_void_p) for tensor in (*LINEAR.inputs, *LINEAR.outputs)),
    ]


def linear_params(inputs: dict[str, Array], attributes: dict[str, Any], addresses: dict[str, int]) -> LinearParams:
    """Parameters of a call; pointers that are not among the addresses are null."""
    values, x = encoded_attributes(LINEAR, attributes), inputs["x"]
    sizes = {"T": x.shape[0], "K": x.shape[1], "N": attributes["out_features"]}
    return LinearParams(LinearAttributes(**values), FLOAT_TYPES.index(np.dtype(x.dtype)), **sizes, **addresses)
