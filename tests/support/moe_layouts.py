# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE's inputs in every format and order of weights."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops.quantise import QuantisedWeights, quantise
from fastmmoe.exporter.ops.sparse_moe.tile_order import tile_packed, tile_weights
from fastmmoe.runtime.types import Array
from tests.support.operators import moe_attributes, moe_inputs

LAYOUTS = ("logical", "tiles")


class Kind(NamedTuple):
    """How weights are stored."""

    weight_format: str  # of the contract, or bfloat16
    group_size: int = 0
    zero_points: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, self))

    def has(self, layout: str) -> bool:
        """Whether there are such weights in this order."""
        return layout == "logical" or self.weight_format in ("bfloat16", "int8", "int4")

    def attributes(self) -> dict[str, Any]:
        """Those of the contract."""
        weight_format = "float" if self.group_size == 0 else self.weight_format
        return {"weight_format": weight_format, "group_size": self.group_size, "zero_points": self.zero_points}


KINDS = (
    Kind("float"),
    Kind("bfloat16"),
    *itertools.starmap(Kind, itertools.product(("int8", "int4"), (32, 64, 128), (0, 1))),
    Kind("fp8", 32),
    Kind("fp8", 128),
)


def stored_case(
    kind: Kind,
    layout: str,
    *,
    H: int = 72,
    I: int = 40,  # noqa: E741
    expert_bias: int = 0,
    attributes: dict[str, Any] | None = None,
    **sizes: Any,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Random inputs, in the contract's order, and attributes.

    Args:
        H, I: multiples of 8 for int4.
        attributes: that are not the default.
        sizes: others of `moe_inputs`.
    """
    made = moe_attributes(expert_bias=expert_bias, **kind.attributes(), **(attributes or {}))
    inputs = moe_inputs(H=H, I=I, expert_bias=bool(expert_bias), **sizes)
    if layout == "tiles":
        made |= {"weight_layout": "tiles", "expert_size": I}
    packed = {name: store(inputs[name], kind, layout, is_gate_up=name == "gate_up") for name in ("gate_up", "down")}
    inputs |= {name: weights.values for name, weights in packed.items()}
    if kind.group_size:
        inputs |= {f"{name}_scale": weights.scale for name, weights in packed.items()}
    return inputs | {f"{name}_zero": w.zero for name, w in packed.items() if w.zero is not None}, made


def broken_words(letter: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """A case of int4 in rows whose H or I is 36: the last of its words has four columns, and would be read whole."""
    inputs, attributes = stored_case(Kind("int4", 32, 0), "logical", H=40, I=40)
    cut: dict[str, Any] = {
        "H": {"hidden_states": np.s_[:, :36], "gate_up": np.s_[..., :18], "down": np.s_[:, :36]},
        "I": {"gate_up": np.s_[:, :72], "down": np.s_[..., :18]},
    }[letter]
    matrix = {"H": "down", "I": "gate_up"}[letter]
    cut[f"{matrix}_scale"] = cut[matrix]
    return inputs | {name: np.ascontiguousarray(inputs[name][place]) for name, place in cut.items()}, attributes


def store(weights: Array, kind: Kind, layout: str, *, is_gate_up: bool) -> QuantisedWeights:
    """float32 [E, rows, columns] as a kernel takes them; floats have neither scale nor zero."""
    if kind.group_size:
        packed = quantise(weights, kind.weight_format, kind.group_size, zero_points=bool(kind.zero_points))
        return tile_packed(packed, is_gate_up=is_gate_up) if layout == "tiles" else packed
    values = weights.astype(ml_dtypes.bfloat16 if kind.weight_format == "bfloat16" else np.float32)
    if layout == "tiles":
        values = tile_weights(values, is_gate_up=is_gate_up)
    return QuantisedWeights(values, np.zeros(0, np.float16), None)
