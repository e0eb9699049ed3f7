# SPDX-License-Identifier: Apache-2.0
"""Schedules of requests: how many visual tokens each prune site leaves, and the experts they use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import FASTMMOE, FASTV, METHODS, RANDOM, SPARSEVLM, UNMODIFIED, Method, Policy

SPARSEVLM_COUNTS = (300, 200, 110)
"""SparseVLM's visual tokens kept at its three stages, of 576 (v1.5, the list called 192)."""
RECYCLED_SHARE, CLUSTER_SHARE = 0.3, 10
"""SparseVLM recycles this share of the dropped tokens (tau) and makes one vector of so many of them (1 / theta)."""

REDUCTION_START_LAYER = 2
"""First layer whose visual tokens use fewer experts by default, or where a request names one number of them."""


@dataclass(frozen=True)
class Schedule:
    """The numbers that one request means for one sequence.

    Attributes:
        retention: the share of visual tokens asked for.
        visual_tokens: V of the prompt.
        keep: visual tokens after every site of the graph.
        merge: merged vectors among them.
        recycle: tokens that sparsevlm makes its merged vectors of.
        sites: those of the request's method, its stages in order; the graph's others are identities.
        visual_top_k: experts of a visual token in every MoE layer.
    """

    method: Method
    retention: float
    visual_tokens: int
    keep: tuple[int, ...]
    merge: tuple[int, ...]
    recycle: tuple[int, ...]
    sites: tuple[int, ...]
    visual_top_k: tuple[int, ...]

    @property
    def kept_visual_tokens(self) -> tuple[int, ...]:
        """Visual tokens after each stage of the method."""
        return tuple(self.keep[site] for site in self.sites)

    @property
    def merged_vectors(self) -> tuple[int, ...]:
        """Merged vectors that each stage of the method makes."""
        return tuple(self.merge[site] for site in self.sites)

    @property
    def prunes(self) -> bool:
        """Whether any visual token is dropped or merged."""
        return any(self.keep[site] < self.visual_tokens or self.merge[site] for site in self.sites)

    def for_text(self) -> Schedule:
        """The schedule of rows without visual tokens: decode steps, questions without a picture."""
        none = (0,) * len(self.keep)
        return replace(self, visual_tokens=0, keep=none, merge=none, recycle=none)


@dataclass(frozen=True)
class StageCounts:
    """Visual tokens after a stage, merged vectors among them, and the tokens those are made of (sparsevlm)."""

    keep: int
    merge: int = 0
    recycle: int = 0


def check_retention(retention: float) -> float:
    """Return it unchanged; InvalidRequest unless it is in (0, 1]."""
    is_number = isinstance(retention, (int, float)) and not isinstance(retention, bool)
    if not (is_number and math.isfinite(retention) and 0 < retention <= 1):
        raise InvalidRequest(f"retention {retention}: expected a number in (0, 1], the share of visual tokens to keep")
    return float(retention)


def even_exponents(stages: int) -> tuple[float, ...]:
    """s / S: every stage leaves the same share of what it meets."""
    return tuple(s / stages for s in range(1, stages + 1))


def keep_counts(visual_tokens: int, retention: float, exponents: Sequence[float]) -> tuple[int, ...]:
    """K_s = min(K_(s-1), max(1, floor(V * R^e_s + 1e-9))), in float64; all 0 when V is 0."""
    if visual_tokens == 0:
        return (0,) * len(exponents)
    counts, previous = [], visual_tokens
    for exponent in exponents:
        previous = min(previous, max(1, math.floor(visual_tokens * retention**exponent + 1e-9)))
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


def sparsevlm_counts(visual_tokens: int, kept: int) -> tuple[int, int]:
    """(N recycled tokens, M vectors they become) where SparseVLM keeps so many of so many tokens, fewer than all."""
    recycled = int(RECYCLED_SHARE * (visual_tokens - kept)) + 1
    return recycled, recycled // CLUSTER_SHARE + 1


def reduce_experts(moe_layers: Sequence[int], top_k: int, visual_top_k: int) -> tuple[int, ...]:
    """Experts of a visual token in every MoE layer: the model's k before REDUCTION_START_LAYER, then visual_top_k."""
    return tuple(top_k if i < REDUCTION_START_LAYER else visual_top_k for i in moe_layers)


def plan_request(
    policy: Policy,
    *,
    visual_tokens: int,
    moe_layers: Sequence[int],
    top_k: int,
    method: str | None = None,
    retention: float | None = None,
    visual_top_k: int | Sequence[int] | None = None,
) -> Schedule:
    """The schedule of one request.

    Retention 1 without visual_top_k is the unmodified model, by any method. fastmmoe at a retention below 1 uses the
    stored visual_top_k, every other method the model's experts; the request's overrides both. None means the bundle's
    default.

    Args:
        visual_top_k: experts of a visual token from REDUCTION_START_LAYER on, or in every MoE layer.
    Raises:
        InvalidRequest: a method that is not in the graph, retention outside (0, 1], visual_top_k outside 1..top_k or
            not for every MoE layer, or either of these with method "none".
    """
    chosen = _check_method(policy, method)
    if chosen == UNMODIFIED:
        retention = _check_unmodified(policy, retention, visual_top_k)
    R = check_retention(policy.retention if retention is None else retention)
    if visual_top_k is None:
        visual_top_k = policy.visual_top_k if chosen == FASTMMOE and R < 1 else top_k
    experts = _experts_by_layer(visual_top_k, moe_layers, top_k)
    sites = tuple(s for s, site in enumerate(policy.sites) if chosen in site.methods)
    stages = _stage_counts(policy, chosen, visual_tokens, R, len(sites))
    by_site, V = [], visual_tokens
    for s in range(len(policy.sites)):
        by_site.append(stages[sites.index(s)] if s in sites else StageCounts(V))
        V = by_site[-1].keep
    return Schedule(
        method=chosen,
        retention=R,
        visual_tokens=visual_tokens,
        keep=tuple(c.keep for c in by_site),
        merge=tuple(c.merge for c in by_site),
        recycle=tuple(c.recycle for c in by_site),
        sites=sites,
        visual_top_k=experts,
    )


def _check_unmodified(policy: Policy, retention: float | None, visual_top_k: object) -> float:
    """The retention of the unmodified model, 1; InvalidRequest if something else was asked for."""
    if (retention is not None and check_retention(retention) != 1) or visual_top_k is not None:
        raise InvalidRequest(
            f"method none is the unmodified model: it takes retention 1 and no visual_top_k; "
            f"methods of this bundle: {', '.join(policy.methods)}"
        )
    return 1.0


def _experts_by_layer(visual_top_k: int | Sequence[int], moe_layers: Sequence[int], top_k: int) -> tuple[int, ...]:
    given = tuple(visual_top_k) if isinstance(visual_top_k, Sequence) else (visual_top_k,)
    for k in given:
        if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= top_k:
            raise InvalidRequest(f"visual_top_k {k}: expected 1 to {top_k}, the model's experts per token")
    if not isinstance(visual_top_k, Sequence):
        return reduce_experts(moe_layers, top_k, visual_top_k)
    if len(given) != len(moe_layers):
        raise InvalidRequest(
            f"visual_top_k has {len(given)} numbers: expected one number, or {len(moe_layers)}, one for each MoE layer"
        )
    return given


def _check_method(policy: Policy, method: str | None) -> Method:
    if method is None:
        return policy.default_method
    for known in policy.methods:
        if known == method:
            return known
    if method in METHODS:
        raise InvalidRequest(
            f"method {method}: the bundle has {', '.join(policy.methods)}; export with --method {method} or all"
        )
    raise InvalidRequest(f"method {method!r}: expected one of {', '.join(policy.methods)}")


def _stage_counts(
    policy: Policy, method: Method, visual_tokens: int, retention: float, stages: int
) -> list[StageCounts]:
    V = visual_tokens
    if retention == 1 or V == 0:
        return [StageCounts(V)] * stages
    if method == FASTV:
        # Python rounds halves to even, as the official code does; one token is left at the least.
        return [StageCounts(max(1, round(V * retention)))]
    if method == SPARSEVLM:
        return _sparsevlm_stages(V, retention, stages)
    keep = keep_counts(V, retention, policy.stage_exponents)
    if method == RANDOM:
        return [StageCounts(k) for k in keep]
    before = (V, *keep[:-1])
    ratio, window = policy.merge_ratio, policy.window
    return [StageCounts(k, merge_count(v, k, ratio, window)) for v, k in zip(before, keep, strict=False)]


def _sparsevlm_stages(visual_tokens: int, retention: float, stages: int) -> list[StageCounts]:
    """The list of counts scaled so that the last is floor(V * R); each stage adds its merged vectors."""
    lists = SPARSEVLM_COUNTS[:stages]
    factor = max(1, math.floor(visual_tokens * retention + 1e-9)) / lists[-1]
    counts, V = [], visual_tokens
    for listed in lists:
        kept = min(math.floor(listed * factor + 1e-9), V - 1)
        recycled, merged = sparsevlm_counts(V, kept)
        counts.append(StageCounts(kept + merged, merged, recycled))
        V = kept + merged
    return counts
