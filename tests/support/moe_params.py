# SPDX-License-Identifier: Apache-2.0
"""SparseMoeKernelParams of plugins/sparse_moe/cuda/kernel.h, for calls of kernels without a framework."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import OpSpec
from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.reference import route_reference
from fastmmoe.runtime.types import Array
from tests.support.attention_params import FLOAT_TYPES

MOE_SIZES = ("T", "V", "H", "I", "E")
MOE_BOOLEANS = ("norm_topk_prob", "expert_bias", "zero_points")
C_TYPES: dict[str, Any] = {"int": ctypes.c_int64, "float": ctypes.c_float, "string": ctypes.c_int}
# Of the output's greatest value. The reference computes in float, with integer weights that are not rounded.
TOLERANCES = {FLOAT_TYPES[1]: 2e-3, FLOAT_TYPES[2]: 2e-2}


class MoeAttributes(ctypes.Structure):
    """SparseMoeAttributes: its members and enumerations are in the order of the contract."""

    _fields_ = [(a.name, ctypes.c_bool if a.name in MOE_BOOLEANS else C_TYPES[a.kind]) for a in SPARSE_MOE.attributes]


class MoeParams(ctypes.Structure):
    """SparseMoeKernelParams."""

    _fields_ = [
        ("attributes", MoeAttributes),
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in MOE_SIZES),
        *((tensor.name, ctypes.c_void_p) for tensor in (*SPARSE_MOE.inputs, *SPARSE_MOE.outputs)),
    ]


def moe_sizes(inputs: dict[str, Array]) -> dict[str, int]:
    """Sizes of a call, by letter."""
    (T, H), I2, E = inputs["hidden_states"].shape, inputs["gate_up"].shape[1], inputs["router_logits"].shape[1]
    return {"T": T, "V": len(inputs["visual_index"]), "H": H, "I": I2 // 2, "E": E}


def encoded_attributes(spec: OpSpec, attributes: dict[str, Any]) -> dict[str, Any]:
    """Words as places in the enumerations of the contract."""
    return {
        a.name: a.choices.index(attributes[a.name]) if a.kind == "string" else attributes[a.name]
        for a in spec.attributes
    }


def moe_params(sizes: dict[str, int], dtype: Any, attributes: dict[str, Any], addresses: dict[str, int]) -> MoeParams:
    """Parameters of a call; pointers that are not among the addresses are null."""
    values = encoded_attributes(SPARSE_MOE, attributes)
    return MoeParams(MoeAttributes(**values), FLOAT_TYPES.index(np.dtype(dtype)), **sizes, **addresses)


def typed(inputs: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """States, biases and weights that are no integers rounded to the type."""
    weights = () if "gate_up_scale" in inputs else ("gate_up", "down")
    names = ("hidden_states", "gate_up_bias", "down_bias", *weights)
    return inputs | {name: inputs[name].astype(dtype) for name in names if name in inputs}


def packed(inputs: dict[str, Array], weight_format: str, group_size: int, *, zero_points: bool) -> dict[str, Array]:
    """Integer weights in place of those of `inputs`, in the order of the contract."""
    made = {
        name: quantise(inputs[name], weight_format, group_size, zero_points=zero_points) for name in ("gate_up", "down")
    }
    inputs = inputs | {name: weights.values for name, weights in made.items()}
    inputs |= {f"{name}_scale": weights.scale for name, weights in made.items()}
    return inputs | {f"{name}_zero": weights.zero for name, weights in made.items() if weights.zero is not None}


def expected_experts(inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
    """What the reference chooses, as the kernels store it at the start of their workspace."""
    is_visual = np.isin(np.arange(len(inputs["router_logits"])), inputs["visual_index"])
    visual_top_k = int(inputs["visual_top_k"][0])
    selected, weights = route_reference(
        inputs["router_logits"], is_visual, visual_top_k, inputs["correction_bias"], attributes
    )
    order = np.argsort(selected, axis=1)
    return np.take_along_axis(np.where(weights == 0, -1, selected), order, axis=1)
