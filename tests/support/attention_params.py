# SPDX-License-Identifier: Apache-2.0
"""AttentionParams of plugins/attention/params.h, for calls of kernels without a framework."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import Case

FLOAT_TYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
"""The position is that in the enumeration FloatType."""
BOOLEANS = ("has_sinks", "writes_position_ids", "has_lse")
SIZES = ("A", "B", "T", "N", "K", "C", "D", "W")
INPUTS = (
    *("query", "key", "value", "sink_logits", "past_key", "past_value", "past_lengths", "sequence_ids"),
    *("sequence_offsets", "position_ids", "past_position_ids"),
)
OUTPUTS = ("output", "present_key", "present_value", "present_position_ids", "lse")


class Attributes(ctypes.Structure):
    """AttentionAttributes."""

    _fields_ = [
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int64),
        ("value_width", ctypes.c_int64),
        *((name, ctypes.c_bool) for name in BOOLEANS),
    ]


class Params(ctypes.Structure):
    """AttentionParams."""

    _fields_ = [
        ("attributes", Attributes),
        ("type", ctypes.c_int),
        ("cache_type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in (*INPUTS, *OUTPUTS)),
    ]


def make_params(case: Case, inputs: dict[str, Array], addresses: dict[str, int]) -> Params:
    """Parameters of a call; pointers that are not among the addresses are null."""
    T, N, D = inputs["query"].shape
    B, K, C, _ = inputs["past_key"].shape
    W = _value_width(case, inputs)
    sizes = dict(zip(SIZES, (len(inputs["sequence_offsets"]) - 1, B, T, N, K, C, D, W), strict=True))
    types = (FLOAT_TYPES.index(inputs[name].dtype) for name in ("query", "past_key"))
    return Params(Attributes(**case.attributes), *types, **sizes, **addresses)


def output_types(case: Case, inputs: dict[str, Array]) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each output that the call has, in the contract's order."""
    T, N, _ = inputs["query"].shape
    outputs: dict[str, tuple[tuple[int, ...], Any]] = {}
    for tensor in ATTENTION.outputs_for(case.attributes):
        if tensor.alias:
            outputs[tensor.name] = inputs[tensor.alias].shape, inputs[tensor.alias].dtype
        elif tensor.name == "lse":
            outputs[tensor.name] = (T, N), np.dtype(np.float32)
        else:
            outputs[tensor.name] = (T, N, _value_width(case, inputs)), inputs["query"].dtype
    return outputs


def _value_width(case: Case, inputs: dict[str, Array]) -> int:
    return case.value_width or int(inputs["value"].shape[2])
