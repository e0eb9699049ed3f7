# SPDX-License-Identifier: Apache-2.0
"""FastMMoE's settings and the token counts they give: what a bundle stores and what one request resolves to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from fastmmoe.runtime.errors import InvalidRequest


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """FastMMoE settings of a bundle (spec section 3).

    Attributes:
        method: the pruning built into the graph; "none" is the unmodified model.
        prune_layers: decoder layers (from 0) in front of whose MoE block visual tokens are pruned, ascending.
        retention: default share of visual tokens left after the last stage, in (0, 1].
        alpha: weight of redundancy against importance. merge_ratio: merged windows per kept token.
        window: tokens per window. merge: vector of a merged window.
        reduction_start_layer: first layer in which visual tokens use fewer experts.
        expert_factor: share of the model's experts a visual token keeps.
        reduction_weights: rule for the kept weights where the model does not renormalise.
    """

    method: Literal["fastmmoe", "none"]
    prune_layers: tuple[int, ...]
    retention: float
    alpha: float
    merge_ratio: float
    window: int
    merge: Literal["mlerp", "mean"]
    reduction_start_layer: int
    expert_factor: float
    reduction_weights: Literal["preserve_sum", "none"]


@dataclass(frozen=True)
class Schedule:
    """What one request does: visual tokens kept and windows merged at every stage, experts per visual token."""

    retention: float
    visual_tokens: int
    keep: tuple[int, ...]
    merge: tuple[int, ...]
    visual_top_k: tuple[int, ...]

    def for_decoding(self) -> Schedule:
        """The schedule of the request's decode steps, which have no visual tokens."""
        none = (0,) * len(self.keep)
        return replace(self, visual_tokens=0, keep=none, merge=none)


def check_retention(retention: float) -> float:
    """Return it unchanged; InvalidRequest unless it is in (0, 1]."""
    if not (isinstance(retention, (int, float)) and math.isfinite(retention) and 0 < retention <= 1):
        raise InvalidRequest(f"retention {retention}: expected a number in (0, 1], the share of visual tokens to keep")
    return float(retention)


def keep_counts(visual_tokens: int, retention: float, stages: int) -> tuple[int, ...]:
    """K_s = min(K_(s-1), max(1, floor(V * R^(s/S) + 1e-9))), in float64; all 0 when V is 0."""
    if visual_tokens == 0:
        return (0,) * stages
    counts, previous = [], visual_tokens
    for s in range(1, stages + 1):
        previous = min(previous, max(1, math.floor(visual_tokens * retention ** (s / stages) + 1e-9)))
        counts.append(previous)
    return tuple(counts)


def merge_count(visual_tokens: int, keep: int, merge_ratio: float, window: int) -> int:
    """M = min(floor(K * merge_ratio + 1e-9), ceil(V / w) - 1, floor((V - K) / (w - 1))); 0 for windows of one token."""
    if window == 1 or keep == visual_tokens:
        return 0
    return max(
        0,
        min(
            math.floor(keep * merge_ratio + 1e-9),
            -(-visual_tokens // window) - 1,
            (visual_tokens - keep) // (window - 1),
        ),
    )


def reduced_top_k(top_k: int, expert_factor: float) -> int:
    """k_v = max(1, floor(k * expert_factor + 0.5))."""
    return max(1, math.floor(top_k * expert_factor + 0.5))


def plan_request(
    policy: Policy,
    *,
    visual_tokens: int,
    moe_layers: tuple[int, ...],
    top_k: int,
    retention: float | None = None,
    visual_top_k: int | None = None,
) -> Schedule:
    """The schedule of one request.

    Retention 1 without visual_top_k is the unmodified model; retention below 1 alone uses the stored expert_factor;
    retention None means the bundle's default.

    Raises:
        InvalidRequest: retention outside (0, 1], visual_top_k outside 1..top_k, or either on a bundle exported
            without FastMMoE.
    """
    if policy.method == "none" and ((retention is not None and retention != 1) or visual_top_k is not None):
        raise InvalidRequest("this bundle was exported with --method none: it only answers at retention 1.0")
    R = check_retention(policy.retention if retention is None else retention)
    if visual_top_k is not None and not 1 <= visual_top_k <= top_k:
        raise InvalidRequest(f"visual_top_k {visual_top_k}: expected 1 to {top_k}, the model's experts per token")
    if visual_top_k is None:
        visual_top_k = top_k if R == 1 else reduced_top_k(top_k, policy.expert_factor)
    keep = keep_counts(visual_tokens, R, len(policy.prune_layers))
    before = (visual_tokens, *keep[:-1])
    merge = tuple(merge_count(v, k, policy.merge_ratio, policy.window) for v, k in zip(before, keep, strict=False))
    per_layer = tuple(top_k if layer < policy.reduction_start_layer else visual_top_k for layer in moe_layers)
    return Schedule(retention=R, visual_tokens=visual_tokens, keep=keep, merge=merge, visual_top_k=per_layer)
