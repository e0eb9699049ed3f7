# SPDX-License-Identifier: Apache-2.0
"""FmmRotary: rotary positions of heads, behind their norm (contract). Of the CPU alone."""

from __future__ import annotations

from fastmmoe.exporter.ops.contract import Attribute, Attributes, OpSpec, Size, Tensor


def _rule(attributes: Attributes) -> str | None:
    """What is wrong with attributes that do not go together, or None."""
    epsilon, has_norm = float(attributes["epsilon"]), attributes["has_norm"]
    if has_norm and not 0 < epsilon < 1:
        return f"attribute epsilon is {epsilon:g} with has_norm 1, expected one between 0 and 1"
    if not has_norm and epsilon != 0:
        return f"attribute epsilon is {epsilon:g} with has_norm 0, expected 0"
    return None


ROTARY = OpSpec(
    name="FmmRotary",
    folder="rotary",
    version=1,
    doc=(
        "The root-mean-square norm of each head, where there is one, then its rotary position: a and b, the first and "
        "the second P columns, become a cos - b sin and b cos + a sin. Only libraries for the CPU have it."
    ),
    type_variables={},
    inputs=(
        Tensor("x", ("T", "N", "2P"), ("float",), "Heads of each row."),
        Tensor("cos", ("T", "1", "P"), ("float",), "Cosines of each row's angles."),
        Tensor("sin", ("T", "1", "P"), ("float",), "Their sines."),
        Tensor("norm", ("2P",), ("float",), "The norm's weights.", only_if=("has_norm", (1,))),
    ),
    outputs=(Tensor("y", ("T", "N", "2P"), ("float",), "Heads at their positions."),),
    attributes=(
        Attribute("has_norm", "int", "1: each head is divided by the root of its mean square.", choices=(0, 1)),
        Attribute("epsilon", "float", "Added to the mean square, between 0 and 1; 0 without a norm."),
    ),
    sizes=(
        Size("T", 0, 1 << 24, "Rows."),
        Size("N", 1, 1 << 10, "Heads."),
        Size("P", 1, 1 << 9, "Half the width of a head."),
    ),
    rule=_rule,
)
