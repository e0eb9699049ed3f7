# SPDX-License-Identifier: Apache-2.0
"""TokenPruneParams of plugins/token_prune/params.h, for calls of kernels without a framework."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops import TOKEN_PRUNE
from fastmmoe.runtime.types import Array

# Of the output's greatest value; the order is that of the enumeration FloatType.
TOLERANCES = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3, np.dtype(ml_dtypes.bfloat16): 2e-2}
DTYPES = list(TOLERANCES)
STATES = ("hidden_states", "residual")
OFFSETS = ("visual_offsets", "keep_offsets", "merge_offsets")
INPUTS = ("hidden_states", "residual", "routing_probs", "attention", "visual_index", *OFFSETS, "alpha")
OUTPUTS = ("hidden_states_out", "residual_out", "kept_index", "visual_index_out")
SIZES = ("B", "T", "V", "K", "M", "H", "E")


class Attributes(ctypes.Structure):
    """TokenPruneAttributes."""

    _fields_ = [("window", ctypes.c_int64), ("merge", ctypes.c_int)]


class Params(ctypes.Structure):
    """TokenPruneParams."""

    _fields_ = [
        ("attributes", Attributes),
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in (*INPUTS, *OUTPUTS)),
    ]


def prune_sizes(inputs: dict[str, Array]) -> dict[str, int]:
    """Sizes of a call, by letter."""
    (T, H), (V, E) = inputs["hidden_states"].shape, inputs["routing_probs"].shape
    K, M = len(inputs["keep_slots"]), len(inputs["merge_slots"])
    return dict(zip(SIZES, (len(inputs["visual_offsets"]) - 1, T, V, K, M, H, E), strict=True))


def prune_params(sizes: dict[str, int], dtype: Any, attributes: dict[str, Any], addresses: dict[str, int]) -> Params:
    """Parameters of a call; pointers that are not among the addresses are null."""
    merge = TOKEN_PRUNE.attribute("merge").choices.index(attributes["merge"])
    values = Attributes(attributes["window"], merge)
    return Params(values, DTYPES.index(np.dtype(dtype)), **sizes, **addresses)


def prune_output_types(sizes: dict[str, int], dtype: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each output."""
    rows, H = sizes["T"] - sizes["V"] + sizes["K"], sizes["H"]
    shapes: list[tuple[tuple[int, ...], Any]] = [((rows, H), dtype)] * 2
    shapes += [((rows,), np.int32), ((sizes["K"],), np.int32)]
    return dict(zip(OUTPUTS, shapes, strict=True))


def with_dtype(inputs: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """The states rounded to the type."""
    return inputs | {name: inputs[name].astype(dtype) for name in STATES}
