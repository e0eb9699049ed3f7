# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE: routing, expert activation reduction and the routed experts of one layer (contract)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import (
    LAYOUT,
    TILES,
    Attribute,
    Attributes,
    Binding,
    Constant,
    OpSpec,
    Size,
    Tensor,
    check_rows,
)
from fastmmoe.exporter.ops.quantise import check_packed
from fastmmoe.exporter.ops.tiles import weight_sizes, weights_misfit
from fastmmoe.runtime.method.policy import REDUCTIONS

PACKED_WEIGHTS = ("weight_format", ("int8", "int4", "fp8"))
GROUPED_METHODS = ("group_limited_greedy", "noaux_tc")


def _rule(attributes: Attributes) -> str | None:
    """What is wrong with attributes that do not go together, or None."""
    weight_format, group_size = attributes["weight_format"], attributes["group_size"]
    n_group, topk_group = attributes["n_group"], attributes["topk_group"]
    if attributes["topk_method"] in GROUPED_METHODS and topk_group > n_group:  # type: ignore[operator]
        return f"attribute topk_group is {topk_group}, expected at most n_group = {n_group}"
    if (weight_format == "float") != (group_size == 0):
        return f"attribute group_size is {group_size} with weight_format {weight_format}, expected 0 with float only"
    if weight_format in ("float", "fp8") and attributes["zero_points"]:
        return f"attribute zero_points is 1 with weight_format {weight_format}, expected 0"
    layout, expert_size = attributes[LAYOUT], attributes["expert_size"]
    if (layout == TILES) != (expert_size > 0):  # type: ignore[operator]
        return f"attribute expert_size is {expert_size} with weight_layout {layout}, expected 0 with logical only"
    if layout == TILES and weight_format == "fp8":
        return "attribute weight_layout is tiles with weight_format fp8, expected logical"
    return None


def _input_rule(attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with inputs that do not go together, or with the attributes, or None."""
    if (misfit := weights_misfit("gate_up", "HI", attributes, binding)) is not None:
        return misfit
    sizes = binding.sizes
    if attributes["top_k"] > sizes["E"]:  # type: ignore[operator]
        return f"top_k is {attributes['top_k']}, expected at most E = {sizes['E']}"
    if attributes["topk_method"] in GROUPED_METHODS and sizes["E"] % attributes["n_group"]:  # type: ignore[operator]
        return f"n_group is {attributes['n_group']}, expected a divisor of E = {sizes['E']}"
    if sizes["V"] > sizes["T"]:
        return f"V is {sizes['V']}, expected at most T = {sizes['T']}"
    return None


def _known_sizes(attributes: Attributes) -> dict[str, int]:
    """Those of the weights, and of tiles I, which they do not tell."""
    of_tiles = {"I": int(attributes["expert_size"])} if attributes[LAYOUT] == TILES else {}
    return weight_sizes(attributes) | of_tiles


SWIGLU_OAI_ALPHA = 1.702
WEIGHT_FLOOR = 1e-20

SPARSE_MOE = OpSpec(
    name="FmmSparseMoE",
    folder="sparse_moe",
    version=1,
    doc=(
        "Routed experts of one MoE layer. Text tokens use top_k experts; the tokens named by visual_index use "
        "visual_top_k of them (FastMMoE, arXiv 2511.17885, expert activation reduction). Shared experts are not part "
        "of it. Weights are floating-point, or integers q that stand for scale (q - zero), or floats q of 8 bits that "
        "stand for scale q: p of them in an element (2 with int4, else 1), each scale and zero shared by "
        "g = group_size columns of a row. As tiles (of bfloat16, int8 and int4) weights lie in panels of n = 16 rows "
        "and words of w columns, b elements each: w is 2, 4 or 8, b is 2, 4 or 4; gate and up panels take turns; what "
        "fills up panels and words is 0."
    ),
    type_variables={
        "F": ("float", "float16", "bfloat16"),
        "W": ("float", "float16", "bfloat16", "int8"),
    },
    inputs=(
        Tensor("hidden_states", ("T", "H"), ("F",), "Normalised input of the MoE block."),
        Tensor("router_logits", ("T", "E"), ("float",), "Router output before softmax or sigmoid."),
        Tensor("visual_index", ("V",), ("int32",), "Rows that are visual tokens, ascending."),
        Tensor("visual_top_k", ("1",), ("int32",), "Experts per visual token, 1 to top_k."),
        Tensor(
            "correction_bias",
            ("E",),
            ("float",),
            "Added to the scores for choosing only (noaux_tc); ignored by the other methods.",
        ),
        Tensor(
            "gate_up",
            ("E", "2I", "H/p"),
            ("W",),
            "Gate rows, then up rows, of every expert.",
            tiled=("E", "I/n", "2", "H/w", "n", "b"),
        ),
        Tensor(
            "down",
            ("E", "H", "I/p"),
            ("W",),
            "Down projection of every expert.",
            tiled=("E", "H/n", "I/w", "n", "b"),
        ),
        Tensor("gate_up_bias", ("E", "2I"), ("F",), "Bias of gate_up.", only_if=("expert_bias", (1,))),
        Tensor("down_bias", ("E", "H"), ("F",), "Bias of down.", only_if=("expert_bias", (1,))),
        *(
            Tensor(f"{weight}_{part}", shape, (kind,), f"{meaning} of {weight}.", only_if=only_if, tiled=tiled)
            for part, kind, meaning, only_if in (
                ("scale", "float16", "Scales", PACKED_WEIGHTS),
                ("zero", "int8", "Zeros", ("zero_points", (1,))),
            )
            for weight, shape, tiled in (
                ("gate_up", ("E", "2I", "H/g"), ("E", "I/n", "2", "H/g", "n")),
                ("down", ("E", "H", "I/g"), ("E", "H/n", "I/g", "n")),
            )
        ),
    ),
    outputs=(Tensor("output", ("T", "H"), ("F",), "Weighted sum of the chosen experts."),),
    attributes=(
        Attribute("top_k", "int", "Experts per text token.", limits=(1, 16)),
        Attribute(
            "scoring_func",
            "string",
            "softmax or sigmoid over all experts; topk_softmax chooses by logit and takes the softmax over the chosen.",
            choices=("softmax", "sigmoid", "topk_softmax"),
        ),
        Attribute(
            "topk_method",
            "string",
            "greedy; group_limited_greedy (best groups by their best score, other scores 0); noaux_tc (score plus "
            "correction_bias, best groups by the sum of their two best, others 0).",
            choices=("greedy", "group_limited_greedy", "noaux_tc"),
        ),
        Attribute("n_group", "int", "Expert groups; 1 without groups.", limits=(1, 64)),
        Attribute("topk_group", "int", "Groups a token may choose from.", limits=(1, 64)),
        Attribute(
            "norm_topk_prob", "int", "1: weights of the chosen experts are divided by their sum.", choices=(0, 1)
        ),
        Attribute("routed_scaling_factor", "float", "Factor on every weight."),
        Attribute(
            "reduction_weights",
            "string",
            "Visual tokens where norm_topk_prob is 0: preserve_sum scales the kept weights to the sum of all top_k; "
            "none leaves them.",
            choices=REDUCTIONS,
        ),
        Attribute(
            "activation",
            "string",
            "swiglu: silu(gate) * up. swiglu_oai: gate <= limit, |up| <= limit, "
            f"(up + 1) * gate * sigmoid({SWIGLU_OAI_ALPHA} * gate).",
            choices=("swiglu", "swiglu_oai"),
        ),
        Attribute("swiglu_limit", "float", "Clamp of swiglu_oai."),
        Attribute("expert_bias", "int", "1: gate_up_bias and down_bias are given.", choices=(0, 1)),
        Attribute(
            "weight_format",
            "string",
            "Type of the weights: float, int8 (q -128 to 127), int4 (q 0 to 15, two to a byte, and zeros likewise 0 to "
            "15), or fp8 (bits of q as float8 e4m3fn in int8; no NaN, and scales below 256). Scales are finite.",
            choices=("float", "int8", "int4", "fp8"),
        ),
        Attribute("group_size", "int", "Columns that share a scale; 0 with float.", choices=(0, 32, 64, 128)),
        Attribute(
            "zero_points",
            "int",
            "1: gate_up_zero and down_zero are given. 0: the zero of int8 is 0, that of int4 is 8.",
            choices=(0, 1),
        ),
        Attribute(
            LAYOUT,
            "string",
            "Order of the weights, scales and zeros: logical, or tiles, which kernels of the CPU read as they lie.",
            choices=("logical", TILES),
        ),
        Attribute("expert_size", "int", "I with tiles; 0 with logical.", limits=(0, 1 << 18)),
    ),
    sizes=(
        Size("T", 0, 1 << 24, "Tokens."),
        Size("V", 0, 1 << 24, "Visual tokens, at most T."),
        Size("H", 1, 1 << 18, "Hidden size."),
        Size("I", 1, 1 << 18, "Hidden size of an expert."),
        Size("E", 1, 1 << 12, "Experts, at least top_k; with groups a multiple of n_group."),
    ),
    constants=(
        Constant("swiglu_oai_alpha", SWIGLU_OAI_ALPHA, "float", "Factor of gate in the sigmoid of swiglu_oai."),
        Constant("weight_floor", WEIGHT_FLOOR, "float", "Keeps a sum of scores that divides above 0."),
    ),
    rule=_rule,
    input_rule=_input_rule,
    known_sizes=_known_sizes,
)


def check_moe_inputs(attributes: Attributes, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless the contract allows the inputs, arrays or CPU tensors by name, and what is in them."""
    SPARSE_MOE.check_inputs(attributes, inputs)
    check_rows(SPARSE_MOE.name, "visual_index", np.asarray(inputs["visual_index"]), len(inputs["hidden_states"]))
    used, top_k = int(inputs["visual_top_k"][0]), attributes["top_k"]
    if not 1 <= used <= top_k:  # type: ignore[operator]
        raise ValueError(f"{SPARSE_MOE.name}: visual_top_k is {used}, expected 1 to top_k = {top_k}")
    check_packed(SPARSE_MOE.name, inputs, str(attributes["weight_format"]))
