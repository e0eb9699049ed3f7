# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE: routing, expert activation reduction and the routed experts of one layer (contract and reference)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmoe.exporter.ops.contract import Attribute, Attributes, Binding, OpSpec, Size, Tensor, check_rows
from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise

Array = npt.NDArray[Any]

INTEGER_WEIGHTS = ("weight_format", ("int8", "int4"))
GROUPED_METHODS = ("group_limited_greedy", "noaux_tc")


def _rule(attributes: Attributes) -> str | None:
    """What is wrong with attributes that do not go together, or None."""
    weight_format, group_size = attributes["weight_format"], attributes["group_size"]
    n_group, topk_group = attributes["n_group"], attributes["topk_group"]
    if attributes["topk_method"] in GROUPED_METHODS and topk_group > n_group:  # type: ignore[operator]
        return f"attribute topk_group is {topk_group}, expected at most n_group = {n_group}"
    if (weight_format == "float") != (group_size == 0):
        return f"attribute group_size is {group_size} with weight_format {weight_format}, expected 0 with float only"
    if weight_format == "float" and attributes["zero_points"]:
        return "attribute zero_points is 1 with weight_format float, expected 0"
    return None


def _input_rule(attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with inputs that do not go together, or with the attributes, or None."""
    sizes, weights, weight_format = binding.sizes, binding.types["W"], attributes["weight_format"]
    is_float = weight_format == "float"
    if is_float != (weights != "int8"):
        expected = "float, float16 or bfloat16" if is_float else "int8"
        return f"gate_up is {weights}, expected {expected} with weight_format {weight_format}"
    if attributes["top_k"] > sizes["E"]:  # type: ignore[operator]
        return f"top_k is {attributes['top_k']}, expected at most E = {sizes['E']}"
    if attributes["topk_method"] in GROUPED_METHODS and sizes["E"] % attributes["n_group"]:  # type: ignore[operator]
        return f"n_group is {attributes['n_group']}, expected a divisor of E = {sizes['E']}"
    if sizes["V"] > sizes["T"]:
        return f"V is {sizes['V']}, expected at most T = {sizes['T']}"
    return None


def _known_sizes(attributes: Attributes) -> dict[str, int]:
    """p and g of the weights."""
    return {"p": 2 if attributes["weight_format"] == "int4" else 1, "g": int(attributes["group_size"])}


SPARSE_MOE = OpSpec(
    name="FmmSparseMoE",
    version=1,
    doc=(
        "Routed experts of one MoE layer. Text tokens use top_k experts; the tokens named by visual_index use "
        "visual_top_k of them (FastMMoE, arXiv 2511.17885, expert activation reduction). Shared experts are not part "
        "of it. Weights are floating-point, or integers q that stand for scale (q - zero): p of them in an element "
        "(2 with int4, else 1), each scale and zero shared by g = group_size columns of a row."
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
        Tensor("gate_up", ("E", "2I", "H/p"), ("W",), "Gate rows, then up rows, of every expert."),
        Tensor("down", ("E", "H", "I/p"), ("W",), "Down projection of every expert."),
        Tensor("gate_up_bias", ("E", "2I"), ("F",), "Bias of gate_up.", only_if=("expert_bias", (1,))),
        Tensor("down_bias", ("E", "H"), ("F",), "Bias of down.", only_if=("expert_bias", (1,))),
        Tensor("gate_up_scale", ("E", "2I", "H/g"), ("float16",), "Scales of gate_up.", only_if=INTEGER_WEIGHTS),
        Tensor("down_scale", ("E", "H", "I/g"), ("float16",), "Scales of down.", only_if=INTEGER_WEIGHTS),
        Tensor("gate_up_zero", ("E", "2I", "H/g"), ("int8",), "Zeros of gate_up.", only_if=("zero_points", (1,))),
        Tensor("down_zero", ("E", "H", "I/g"), ("int8",), "Zeros of down.", only_if=("zero_points", (1,))),
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
            choices=("preserve_sum", "none"),
        ),
        Attribute(
            "activation",
            "string",
            "swiglu: silu(gate) * up. swiglu_oai: gate <= limit, |up| <= limit, "
            "(up + 1) * gate * sigmoid(1.702 * gate).",
            choices=("swiglu", "swiglu_oai"),
        ),
        Attribute("swiglu_limit", "float", "Clamp of swiglu_oai."),
        Attribute("expert_bias", "int", "1: gate_up_bias and down_bias are given.", choices=(0, 1)),
        Attribute(
            "weight_format",
            "string",
            "Type of the weights: float, int8 (q -128 to 127), or int4 (q 0 to 15, two to a byte).",
            choices=("float", "int8", "int4"),
        ),
        Attribute("group_size", "int", "Columns that share a scale; 0 with float.", choices=(0, 32, 64, 128)),
        Attribute(
            "zero_points",
            "int",
            "1: gate_up_zero and down_zero are given. 0: the zero of int8 is 0, that of int4 is 8.",
            choices=(0, 1),
        ),
    ),
    sizes=(
        Size("T", 0, 1 << 24, "Tokens."),
        Size("V", 0, 1 << 24, "Visual tokens, at most T."),
        Size("H", 1, 1 << 18, "Hidden size."),
        Size("I", 1, 1 << 18, "Hidden size of an expert."),
        Size("E", 1, 1 << 12, "Experts, at least top_k; with groups a multiple of n_group."),
    ),
    rule=_rule,
    input_rule=_input_rule,
    known_sizes=_known_sizes,
)

SWIGLU_OAI_ALPHA = 1.702


def _best(scores: Array, count: int) -> Array:
    """Indices [T, count] of the greatest scores of every row, best first; ties: the smaller index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _limit_to_groups(choice: Array, n_group: int, topk_group: int, by_sum_of_two: bool) -> Array:
    """Set the scores outside the best topk_group groups to 0, as the official gate does (not to -inf)."""
    T, E = choice.shape
    grouped = choice.reshape(T, n_group, E // n_group)
    if by_sum_of_two:
        group_scores = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    else:
        group_scores = grouped.max(axis=2)
    keep = np.zeros((T, n_group), bool)
    np.put_along_axis(keep, _best(group_scores, topk_group), True, axis=1)
    return np.where(keep[:, :, None], grouped, np.float32(0)).reshape(T, E)


def route_reference(
    router_logits: Array,
    is_visual: Array,
    visual_top_k: int,
    correction_bias: Array,
    attributes: dict[str, Any],
) -> tuple[Array, Array]:
    """Choose experts and weights.

    Args:
        router_logits: [T, E] float32. is_visual: [T] bool. correction_bias: [E] float32.
    Returns:
        selected_experts [T, k] int64, best first, and routing_weights [T, k] float32; a visual token has weight 0
        from column visual_top_k on.
    Source: MoEGate of the official DeepSeek-VL2 code; Qwen3MoeTopKRouter, GptOssTopKRouter of transformers;
        expert activation reduction of FastMMoE.
    """
    k, scoring, method = attributes["top_k"], attributes["scoring_func"], attributes["topk_method"]
    logits = router_logits.astype(np.float32)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    if scoring == "softmax":
        scores = shifted / shifted.sum(axis=1, keepdims=True)
    elif scoring == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = logits
    choice = scores
    if method == "group_limited_greedy":
        choice = _limit_to_groups(scores, attributes["n_group"], attributes["topk_group"], by_sum_of_two=False)
    elif method == "noaux_tc":
        choice = scores + correction_bias.astype(np.float32)[None, :]
        choice = _limit_to_groups(choice, attributes["n_group"], attributes["topk_group"], by_sum_of_two=True)
    selected = _best(choice, k)
    used = np.arange(k)[None, :] < np.where(is_visual, visual_top_k, k)[:, None]
    # The official group_limited_greedy takes its weights from the masked scores: a chosen expert of a dropped group
    # (possible only when k exceeds the experts left) weighs 0.
    source = choice if method == "group_limited_greedy" else scores
    weights = np.take_along_axis(source, selected, axis=1)
    return selected, _weigh(weights, used, attributes)


def _weigh(weights: Array, used: Array, attributes: dict[str, Any]) -> Array:
    """Weights [T, k] of the chosen experts from their scores; unused columns become 0."""
    if attributes["scoring_func"] == "topk_softmax":
        shifted = np.where(used, np.exp(weights - weights.max(axis=1, keepdims=True, initial=-np.inf)), 0)
        return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    kept = np.where(used, weights, np.float32(0))
    if attributes["norm_topk_prob"] and attributes["top_k"] > 1:
        kept = kept / (kept.sum(axis=1, keepdims=True) + np.float32(1e-20))
    elif attributes["reduction_weights"] == "preserve_sum":
        share = weights.sum(axis=1, keepdims=True) / np.maximum(kept.sum(axis=1, keepdims=True), np.float32(1e-20))
        kept = np.where(used.all(axis=1, keepdims=True), kept, kept * share)
    return (kept * np.float32(attributes["routed_scaling_factor"])).astype(np.float32)


def activate_reference(gate: Array, up: Array, attributes: dict[str, Any]) -> Array:
    """The gated activation between the two expert projections, [n, I] each."""
    if attributes["activation"] == "swiglu":
        return gate / (1 + np.exp(-gate)) * up
    limit = attributes["swiglu_limit"]
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-SWIGLU_OAI_ALPHA * gate))


def check_moe_inputs(attributes: Attributes, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless the contract allows the inputs, arrays or CPU tensors by name, and what is in them."""
    SPARSE_MOE.check_inputs(attributes, inputs)
    check_rows(SPARSE_MOE.name, "visual_index", np.asarray(inputs["visual_index"]), len(inputs["hidden_states"]))
    used, top_k = int(inputs["visual_top_k"][0]), attributes["top_k"]
    if not 1 <= used <= top_k:  # type: ignore[operator]
        raise ValueError(f"{SPARSE_MOE.name}: visual_top_k is {used}, expected 1 to top_k = {top_k}")


def sparse_moe_reference(
    hidden_states: Array,
    router_logits: Array,
    visual_index: Array,
    visual_top_k: Array,
    correction_bias: Array,
    gate_up: Array,
    down: Array,
    gate_up_bias: Array | None = None,
    down_bias: Array | None = None,
    gate_up_scale: Array | None = None,
    down_scale: Array | None = None,
    gate_up_zero: Array | None = None,
    down_zero: Array | None = None,
    **attributes: Any,
) -> Array:
    """FmmSparseMoE in NumPy, computed in float32; arguments and result as in `SPARSE_MOE`.

    Raises:
        ValueError: attributes or inputs outside the contract.
    """
    SPARSE_MOE.check_attributes(attributes)
    tensors = (hidden_states, router_logits, visual_index, visual_top_k, correction_bias, gate_up, down)
    only_some = (gate_up_bias, down_bias, gate_up_scale, down_scale, gate_up_zero, down_zero)
    named = zip((t.name for t in SPARSE_MOE.inputs), (*tensors, *only_some), strict=True)
    check_moe_inputs(attributes, {name: array for name, array in named if array is not None})
    if attributes["weight_format"] != "float":
        assert gate_up_scale is not None and down_scale is not None
        packing = attributes["weight_format"], attributes["group_size"]
        gate_up = dequantise(QuantisedWeights(gate_up, gate_up_scale, gate_up_zero), *packing)
        down = dequantise(QuantisedWeights(down, down_scale, down_zero), *packing)
    T = hidden_states.shape[0]
    is_visual = np.zeros(T, bool)
    is_visual[visual_index] = True
    selected, weights = route_reference(router_logits, is_visual, int(visual_top_k[0]), correction_bias, attributes)
    x = hidden_states.astype(np.float32)
    out = np.zeros_like(x)
    for e in range(gate_up.shape[0]):
        token, slot = np.nonzero((selected == e) & (weights != 0))
        if not token.size:
            continue
        gate, up = np.split(x[token] @ gate_up[e].astype(np.float32).T + _row(gate_up_bias, e), 2, axis=1)
        y = activate_reference(gate, up, attributes) @ down[e].astype(np.float32).T + _row(down_bias, e)
        out[token] += weights[token, slot][:, None] * y
    return out.astype(hidden_states.dtype)


def _row(bias: Array | None, e: int) -> Array | float:
    return 0.0 if bias is None else bias[e].astype(np.float32)
