# SPDX-License-Identifier: Apache-2.0
"""FmmVisionAttention: every row of a tile attends to every row of its tile (contract). Of the CPU alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmmoe.exporter.ops.contract import Attribute, Attributes, OpSpec, Size, Tensor

FLOAT32, BFLOAT16 = "float32", "bfloat16"

VISION_ATTENTION = OpSpec(
    name="FmmVisionAttention",
    folder="vision_attention",
    version=1,
    doc=(
        "Self-attention of a vision tower: each of the T rows of a tile attends to all T, head by head, without a mask "
        "and without caches. Queries, keys and values stand beside each other, as one projection gives them. Sums are "
        "float32. Only libraries for the CPU have it."
    ),
    type_variables={"F": ("float", "float16", "bfloat16")},
    inputs=(Tensor("qkv", ("B", "T", "3", "N", "D"), ("F",), "Queries, keys and values of each row."),),
    outputs=(Tensor("output", ("B", "T", "N", "D"), ("F",), "Attended values."),),
    attributes=(
        Attribute("scale", "float", "Factor of query times key."),
        Attribute(
            "compute",
            "string",
            "Type of what is multiplied. With bfloat16 a processor whose units multiply it rounds queries, keys, "
            "values and the softmax's weights; others compute as with float32.",
            choices=(FLOAT32, BFLOAT16),
        ),
    ),
    sizes=(
        Size("B", 1, 1 << 16, "Tiles."),
        Size("T", 1, 1 << 16, "Rows of a tile."),
        Size("N", 1, 1 << 10, "Heads."),
        Size("D", 1, 1 << 10, "Width of a head."),
    ),
)


def check_vision_attention_inputs(attributes: Attributes, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless the contract allows the attributes and the inputs, arrays or tensors by name."""
    VISION_ATTENTION.check_attributes(attributes)
    VISION_ATTENTION.check_inputs(attributes, inputs)
