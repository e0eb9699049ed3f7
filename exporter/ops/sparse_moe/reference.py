# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE in NumPy: what every kernel is held against."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE, SWIGLU_OAI_ALPHA, WEIGHT_FLOOR, check_moe_inputs
from fastmmoe.exporter.ops.sparse_moe.tile_order import untile_scales, untile_weights
from fastmmoe.runtime.method.policy import PRESERVE_SUM
from fastmmoe.runtime.types import Array


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
        router_logits: [T, E] float32.
        is_visual: [T] bool.
        correction_bias: [E] float32.
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
        kept = kept / (kept.sum(axis=1, keepdims=True) + np.float32(WEIGHT_FLOOR))
    elif attributes["reduction_weights"] == PRESERVE_SUM:
        share = weights.sum(axis=1, keepdims=True) / np.maximum(
            kept.sum(axis=1, keepdims=True), np.float32(WEIGHT_FLOOR)
        )
        kept = np.where(used.all(axis=1, keepdims=True), kept, kept * share)
    return (kept * np.float32(attributes["routed_scaling_factor"])).astype(np.float32)


def activate_reference(gate: Array, up: Array, attributes: dict[str, Any]) -> Array:
    """The gated activation between the two expert projections, [n, I] each."""
    if attributes["activation"] == "swiglu":
        return gate / (1 + np.exp(-gate)) * up
    limit = attributes["swiglu_limit"]
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-SWIGLU_OAI_ALPHA * gate))


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
    gate_up = stored_floats((gate_up, gate_up_scale, gate_up_zero), hidden_states.shape[1], attributes, True)
    down = stored_floats((down, down_scale, down_zero), hidden_states.shape[1], attributes, False)
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


def stored_floats(
    stored: tuple[Array, Array | None, Array | None], H: int, attributes: dict[str, Any], is_gate_up: bool
) -> Array:
    """Weights [E, 2I, H] or [E, H, I] as floats from how they are stored."""
    (values, scale, zero), weight_format = stored, attributes["weight_format"]
    if attributes[LAYOUT] == TILES:
        expert_size = attributes["expert_size"]
        rows, columns = (expert_size, H) if is_gate_up else (H, expert_size)
        width = -(-columns // 8) * 4 if weight_format == "int4" else columns
        values = untile_weights(values, rows, width, is_gate_up=is_gate_up)
        scale, zero = (None if t is None else untile_scales(t, rows, is_gate_up=is_gate_up) for t in (scale, zero))
    else:
        columns = values.shape[-1] * (2 if weight_format == "int4" else 1)
    if weight_format == "float":
        return values
    assert scale is not None
    return dequantise(QuantisedWeights(values, scale, zero), weight_format, attributes["group_size"])[..., :columns]


def _row(bias: Array | None, e: int) -> Array | float:
    return 0.0 if bias is None else bias[e].astype(np.float32)
