# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE as a torch.library custom op: an eager kernel for checks and calibration, a fake one for tracing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE, SWIGLU_OAI_ALPHA, WEIGHT_FLOOR, check_moe_inputs
from fastmmoe.exporter.ops.sparse_moe.torch_weights import expert_floats
from fastmmoe.runtime.method.policy import PRESERVE_SUM

_BIASES = ("gate_up_bias", "down_bias")
_WEIGHTS = [[f"{weight}{part}" for part in ("", "_scale", "_zero")] for weight in ("gate_up", "down")]


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [T, count] of the greatest scores of every row; ties: the smaller index (torch.topk promises none)."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]


def _limit_to_groups(choice: torch.Tensor, n_group: int, topk_group: int, by_sum_of_two: bool) -> torch.Tensor:
    T, E = choice.shape
    grouped = choice.view(T, n_group, E // n_group)
    scores = grouped.topk(2, dim=2).values.sum(2) if by_sum_of_two else grouped.amax(2)
    keep = torch.zeros(T, n_group, dtype=torch.bool).scatter_(1, _best(scores, topk_group), True)
    return grouped.masked_fill(~keep[:, :, None], 0.0).view(T, E)


def route(
    router_logits: torch.Tensor,
    is_visual: torch.Tensor,
    visual_top_k: int,
    correction_bias: torch.Tensor,
    a: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts and weights; arguments and results as in `route_reference`, as tensors."""
    scoring, method, k = a["scoring_func"], a["topk_method"], a["top_k"]
    scores = {"softmax": router_logits.softmax(1), "sigmoid": router_logits.sigmoid(), "topk_softmax": router_logits}[
        scoring
    ]
    choice = scores
    if method == "group_limited_greedy":
        choice = scores = _limit_to_groups(scores, a["n_group"], a["topk_group"], by_sum_of_two=False)
    elif method == "noaux_tc":
        choice = _limit_to_groups(scores + correction_bias, a["n_group"], a["topk_group"], by_sum_of_two=True)
    selected = _best(choice, k)
    used = torch.arange(k)[None] < torch.where(is_visual, visual_top_k, k)[:, None]
    weights = scores.gather(1, selected)
    if scoring == "topk_softmax":
        return selected, weights.masked_fill(~used, float("-inf")).softmax(1)
    kept = weights * used
    if a["norm_topk_prob"] and k > 1:
        kept = kept / (kept.sum(1, keepdim=True) + WEIGHT_FLOOR)
    elif a["reduction_weights"] == PRESERVE_SUM:
        share = weights.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(WEIGHT_FLOOR)
        kept = torch.where(used.all(1, keepdim=True), kept, kept * share)
    return selected, kept * a["routed_scaling_factor"]


def _activate(gate: torch.Tensor, up: torch.Tensor, a: dict[str, Any]) -> torch.Tensor:
    if a["activation"] == "swiglu":
        return F.silu(gate) * up
    gate, up = gate.clamp(max=a["swiglu_limit"]), up.clamp(-a["swiglu_limit"], a["swiglu_limit"])
    return (up + 1) * gate * torch.sigmoid(SWIGLU_OAI_ALPHA * gate)


@torch.library.custom_op("fastmmoe::sparse_moe", mutates_args=())
def sparse_moe(
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    visual_index: torch.Tensor,
    visual_top_k: torch.Tensor,
    correction_bias: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    others: list[torch.Tensor],
    attributes: str,
) -> torch.Tensor:
    """FmmSparseMoE in torch, experts in float32.

    `others` are the contract's further inputs that the attributes ask for, `attributes` is `SPARSE_MOE.encode`; the
    rest as in the contract.
    Raises ValueError for inputs outside of it.
    """
    a = SPARSE_MOE.decode(attributes)
    tensors = (hidden_states, router_logits, visual_index, visual_top_k, correction_bias, gate_up, down, *others)
    given = dict(zip((t.name for t in SPARSE_MOE.inputs_for(a)), tensors, strict=False))
    check_moe_inputs(a, given)
    weights_of = [[given[name] for name in names if name in given] for names in _WEIGHTS]
    is_visual = torch.zeros(hidden_states.shape[0], dtype=torch.bool)
    is_visual[visual_index.long()] = True
    selected, weights = route(router_logits, is_visual, int(visual_top_k), correction_bias, a)
    x = hidden_states.float()
    out = torch.zeros_like(x)
    H = hidden_states.shape[1]
    I = int(a["expert_size"]) or gate_up.shape[1] // 2  # noqa: E741
    for e in range(gate_up.shape[0]):
        token, slot = torch.nonzero((selected == e) & (weights != 0), as_tuple=True)
        if not len(token):
            continue
        gate_up_bias, down_bias = (given[name][e].float() if name in given else None for name in _BIASES)
        of_gate_up, of_down = ([tensor[e] for tensor in stored] for stored in weights_of)
        weight = expert_floats(of_gate_up, a, I, H, is_gate_up=True)
        gate, up = F.linear(x[token], weight, gate_up_bias).chunk(2, dim=1)
        y = F.linear(_activate(gate, up, a), expert_floats(of_down, a, H, I, is_gate_up=False), down_bias)
        out[token] += weights[token, slot, None] * y
    return out.to(hidden_states.dtype)


@sparse_moe.register_fake
def _(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(hidden_states)
