# SPDX-License-Identifier: Apache-2.0
"""FmmLinear: a matrix product with weights of 16, 8 or 4 bits (contract)."""

from __future__ import annotations

from fastmmoe.exporter.ops.contract import LAYOUT, TILES, Attribute, Attributes, Binding, Constant, OpSpec, Size, Tensor
from fastmmoe.exporter.ops.tiles import PANEL_ROWS, WORD_BYTES, WORD_COLUMNS

INTEGERS = ("int8", "int4")
MOST_WIDTH = 1 << 20


def _rule(attributes: Attributes) -> str | None:
    """What is wrong with attributes that do not go together, or None."""
    weight_format, group_size = attributes["weight_format"], attributes["group_size"]
    if (weight_format == "float") != (group_size == 0):
        return f"attribute group_size is {group_size} with weight_format {weight_format}, expected 0 with float only"
    if weight_format == "float" and attributes["zero_points"]:
        return "attribute zero_points is 1 with weight_format float, expected 0"
    if weight_format != "float" and attributes[LAYOUT] != TILES:
        return f"attribute weight_layout is logical with weight_format {weight_format}, expected tiles"
    return None


def _input_rule(attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with inputs that do not go together, or with the attributes, or None."""
    weight_format = attributes["weight_format"]
    if attributes[LAYOUT] != TILES:
        return None
    expected, found = "bfloat16" if weight_format == "float" else "int8", binding.types["Q"]
    if found != expected:
        return f"weight_tiles is {found}, expected {expected} with weight_format {weight_format}"
    return None


def known_sizes(attributes: Attributes) -> dict[str, int]:
    """N, and p, c, o and g of the weights."""
    weight_format = str(attributes["weight_format"])
    elements = WORD_BYTES // (2 if weight_format == "float" else 1)
    return {
        "N": int(attributes["out_features"]),
        "p": WORD_COLUMNS[weight_format],
        "c": elements,
        "o": PANEL_ROWS,
        "g": int(attributes["group_size"]),
    }


LINEAR = OpSpec(
    name="FmmLinear",
    folder="linear",
    version=1,
    doc=(
        "x times a weight matrix [N, K], transposed, plus a bias; the sum through an activation, plus a residual. The "
        "weights are floating-point, or integers q that stand for scale (q - zero), each scale and zero shared by g = "
        "group_size columns of a row. In tiles they stand as the kernels read them (exporter/ops/tiles.py): the p "
        "columns that are c elements of 4 bytes, for each of o = 16 outputs; what fills up N and K is 0."
    ),
    type_variables={"W": ("float", "bfloat16"), "Q": ("bfloat16", "int8")},
    inputs=(
        Tensor("x", ("T", "K"), ("float",), "Rows."),
        Tensor("weight", ("N", "K"), ("W",), "The weights as they are.", only_if=(LAYOUT, ("logical",))),
        Tensor(
            "weight_tiles",
            ("N/o", "K/p", "o", "c"),
            ("Q",),
            "The weights in tiles, bfloat16 with float.",
            only_if=(LAYOUT, (TILES,)),
        ),
        Tensor("bias", ("N",), ("float",), "Added to each row.", only_if=("has_bias", (1,))),
        Tensor("scale", ("N/o", "K/g", "o"), ("float16",), "Scales.", only_if=("weight_format", INTEGERS)),
        Tensor("zero", ("N/o", "K/g", "o"), ("int8",), "Zeros.", only_if=("zero_points", (1,))),
        Tensor("residual", ("T", "N"), ("float",), "Added at the end.", only_if=("has_residual", (1,))),
    ),
    outputs=(Tensor("y", ("T", "N"), ("float",), "The products."),),
    attributes=(
        Attribute("out_features", "int", "N.", limits=(1, MOST_WIDTH)),
        Attribute(
            "weight_format",
            "string",
            "Type of the weights: float, int8 (q -128 to 127) or int4 (q and zeros 0 to 15). Scales are finite.",
            choices=("float", "int8", "int4"),
        ),
        Attribute(
            LAYOUT,
            "string",
            "Order of the weights; integers stand in tiles.",
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
    constants=(Constant("panel", PANEL_ROWS, "int64_t", "Outputs of a panel of tiles."),),
    rule=_rule,
    input_rule=_input_rule,
    known_sizes=known_sizes,
)
