# SPDX-License-Identifier: Apache-2.0
"""FmmLinear: a matrix product with weights of 16, 8 or 4 bits (contract)."""

from __future__ import annotations

from fastmmoe.exporter.ops.contract import LAYOUT, TILES, Attribute, Attributes, Binding, Constant, OpSpec, Size, Tensor
from fastmmoe.exporter.ops.tiles import INT4_COLUMNS, PANEL_ROWS, weight_sizes, weights_misfit

INTEGERS = ("int8", "int4")
MOST_WIDTH = 1 << 20


def _rule(attributes: Attributes) -> str | None:
    """What is wrong with attributes that do not go together, or None."""
    weight_format, group_size = attributes["weight_format"], attributes["group_size"]
    if (weight_format == "float") != (group_size == 0):
        return f"attribute group_size is {group_size} with weight_format {weight_format}, expected 0 with float only"
    if weight_format == "float" and attributes["zero_points"]:
        return "attribute zero_points is 1 with weight_format float, expected 0"
    return None


def _input_rule(attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with inputs that do not go together, or with the attributes, or None."""
    return weights_misfit("weight", "K", attributes, binding)


def known_sizes(attributes: Attributes) -> dict[str, int]:
    """N, and those of the weights."""
    return {"N": int(attributes["out_features"])} | weight_sizes(attributes)


LINEAR = OpSpec(
    name="FmmLinear",
    folder="linear",
    version=1,
    doc=(
        "x times a weight matrix [N, K], transposed, plus a bias; the sum through an activation, plus a residual. The "
        "weights are floating-point, or integers q that stand for scale (q - zero): p of them in an element (2 with "
        "int4, else 1), each scale and zero shared by g = group_size columns of a row. As tiles they lie in panels of "
        "n = 16 rows and words of w columns, b elements each: w is 2 (bfloat16), 4 (int8) or 8 (int4), b is 2 or 4; "
        "what fills up panels and words is 0."
    ),
    type_variables={
        "F": ("float", "float16", "bfloat16"),
        "W": ("float", "float16", "bfloat16", "int8"),
    },
    inputs=(
        Tensor("x", ("T", "K"), ("F",), "Rows."),
        Tensor("weight", ("N", "K/p"), ("W",), "The weights.", tiled=("N/n", "K/w", "n", "b")),
        Tensor("bias", ("N",), ("F",), "Added to each row.", only_if=("has_bias", (1,))),
        *(
            Tensor(part, ("N", "K/g"), (kind,), meaning, only_if=only_if, tiled=("N/n", "K/g", "n"))
            for part, kind, meaning, only_if in (
                ("scale", "float16", "Scales.", ("weight_format", INTEGERS)),
                ("zero", "int8", "Zeros.", ("zero_points", (1,))),
            )
        ),
        Tensor("residual", ("T", "N"), ("F",), "Added at the end.", only_if=("has_residual", (1,))),
    ),
    outputs=(Tensor("y", ("T", "N"), ("F",), "The products."),),
    attributes=(
        Attribute("out_features", "int", "N.", limits=(1, MOST_WIDTH)),
        Attribute(
            "weight_format",
            "string",
            "Type of the weights: float, int8 (q -128 to 127) or int4 (q 0 to 15, two to a byte, and zeros 0 to 15). "
            "Scales are finite.",
            choices=("float", "int8", "int4"),
        ),
        Attribute(
            LAYOUT,
            "string",
            "Order of the weights, scales and zeros: logical, or tiles, which kernels of the CPU read as they lie.",
            choices=("logical", TILES),
        ),
        Attribute("group_size", "int", "Columns that share a scale; 0 with float.", choices=(0, 32, 64, 128)),
        Attribute(
            "zero_points",
            "int",
            "1: zero is given. 0: the zero of int8 is 0, that of int4 is 8.",
            choices=(0, 1),
        ),
        Attribute("has_bias", "int", "1: bias is given.", choices=(0, 1)),
        Attribute(
            "activation",
            "string",
            "What the sum with the bias goes through: gelu has the error function, gelu_tanh its usual stand-in.",
            choices=("none", "gelu", "gelu_tanh"),
        ),
        Attribute("has_residual", "int", "1: residual is given.", choices=(0, 1)),
    ),
    sizes=(
        Size("T", 0, 1 << 24, "Rows."),
        Size("K", 1, MOST_WIDTH, "Columns of the weights."),
        Size("N", 1, MOST_WIDTH, "Outputs."),
    ),
    constants=(
        Constant("panel", PANEL_ROWS, "int64_t", "Outputs of a panel of tiles."),
        Constant("int4_columns", INT4_COLUMNS, "int64_t", "Columns of a word of int4; a row is whole words."),
    ),
    rule=_rule,
    input_rule=_input_rule,
    known_sizes=known_sizes,
)
