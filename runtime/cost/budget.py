# SPDX-License-Identifier: Apache-2.0
"""From a budget to a retention: the mildest pruning whose counted prefill, or whose tokens, stay within a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.cost.flops import RequestFlops, compare_prefill
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import UNMODIFIED, Policy

STEPS = 10_000
"""Retentions are multiples of 1 / STEPS, so that what is printed is what was counted."""


@dataclass(frozen=True)
class Target:
    """The bound of a request; one of the three.

    Attributes:
        flops_reduction: share of the unmodified model's prefill to be saved, [0, 1).
        max_gflops: the most that the prefill may take.
        max_tokens_kept: visual tokens after the last stage.
    """

    flops_reduction: float | None = None
    max_gflops: float | None = None
    max_tokens_kept: int | None = None

    def check(self) -> None:
        """Raise InvalidRequest unless exactly one is given and in its range."""
        given = [v for v in (self.flops_reduction, self.max_gflops, self.max_tokens_kept) if v is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"{len(given)} targets: expected one of flops_reduction, max_gflops and max_tokens_kept"
            )
        if self.flops_reduction is not None and not 0 <= self.flops_reduction < 1:
            raise InvalidRequest(
                f"flops_reduction {self.flops_reduction}: expected a number in [0, 1), the share to save"
            )
        if self.max_gflops is not None and not (math.isfinite(self.max_gflops) and self.max_gflops > 0):
            raise InvalidRequest(f"max_gflops {self.max_gflops}: expected a positive number")
        if self.max_tokens_kept is not None and self.max_tokens_kept < 1:
            raise InvalidRequest(f"max_tokens_kept {self.max_tokens_kept}: expected at least 1")


def meets(request: RequestFlops, target: Target) -> bool:
    """Whether a request stays within a target."""
    if target.flops_reduction is not None:
        return request.reduction >= target.flops_reduction
    if target.max_gflops is not None:
        return request.prefill.total / 1e9 <= target.max_gflops
    assert target.max_tokens_kept is not None
    return request.kept <= target.max_tokens_kept


def plan_retention(
    info: LanguageModelInfo,
    policy: Policy,
    target: Target,
    *,
    tokens: int,
    visual_tokens: int,
    method: str | None = None,
    **options: Any,
) -> RequestFlops:
    """The request of the greatest retention, in steps of 0.0001, that meets the target.

    FLOPs and tokens kept never rise as the retention falls, so it is found by bisection over exact counts.

    Args:
        tokens: T of the prompt, visual tokens included.
        method: None = the bundle's default.
        options: visual_top_k, rater_rows and vision of `compare_prefill`.
    Raises:
        InvalidRequest: what `compare_prefill` refuses, a target outside its range, a prompt without visual tokens, a
            method that prunes nothing, or no retention that meets the target (with what the smallest one reaches).
    """
    target.check()
    if visual_tokens == 0:
        raise InvalidRequest("the prompt has no visual tokens: there is nothing to prune")
    if (method or policy.default_method) == UNMODIFIED:
        pruning = ", ".join(name for name in policy.methods if name != UNMODIFIED) or "there is none in this bundle"
        raise InvalidRequest(f"method none prunes nothing: expected one that does ({pruning})")

    def at(step: int) -> RequestFlops:
        counts = {"tokens": tokens, "visual_tokens": visual_tokens}
        return compare_prefill(info, policy, **counts, method=method, retention=step / STEPS, **options)

    best = greatest_step(lambda step: meets(at(step), target), STEPS + 1)
    if best is None:
        raise InvalidRequest(_shortfall(at(1), target))
    return at(best)


def greatest_step(reaches: Callable[[int], bool], beyond: int) -> int | None:
    """The greatest number from 1 to below `beyond` that `reaches` accepts, by bisection; None = not even 1.

    Args:
        reaches: accepts every number below one that it accepts, as FLOPs never rise while the retention falls.
    """
    best = 1
    if not reaches(best):
        return None
    while beyond - best > 1:
        middle = (best + beyond) // 2
        best, beyond = (middle, beyond) if reaches(middle) else (best, middle)
    return best


def _shortfall(smallest: RequestFlops, target: Target) -> str:
    """Why even the smallest retention does not do."""
    schedule = smallest.schedule
    start = (
        f"no retention meets the target: method {schedule.method} at {schedule.retention:g}, the smallest "
        f"({smallest.kept:,} of {schedule.visual_tokens:,} visual tokens kept), "
    )
    if target.flops_reduction is not None:
        short = target.flops_reduction - smallest.reduction
        return f"{start}saves {smallest.reduction:.2%} of the prefill, {100 * short:.2f} points too few"
    if target.max_gflops is not None:
        gflops = smallest.prefill.total / 1e9
        return f"{start}needs {gflops:.6g} GFLOPs, {gflops - target.max_gflops:.4g} too many"
    assert target.max_tokens_kept is not None
    return f"{start}keeps {smallest.kept - target.max_tokens_kept:,} too many"
