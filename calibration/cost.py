# SPDX-License-Identifier: Apache-2.0
"""Counted FLOPs of the prefill of many prompts, beside those of the unmodified model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.cost.budget import STEPS, greatest_step
from fastmmoe.runtime.cost.flops import compare_prefill
from fastmmoe.runtime.method.policy import Policy


class Cost:
    """Counts what a policy costs on prompts of given sizes (docs/flops.md).

    Args:
        sizes: (tokens, visual tokens) of every prompt.
    """

    def __init__(self, info: LanguageModelInfo, sizes: Iterable[tuple[int, int]]) -> None:
        self._info, self._sizes = info, Counter(sizes)

    def flops(self, policy: Policy) -> float:
        """FLOPs of the mean prompt at the policy's retention."""
        return self._mean(policy)[0]

    def reduction(self, policy: Policy) -> float:
        """Share of the unmodified model's FLOPs that is saved."""
        pruned, full = self._mean(policy)
        return 1 - pruned / full

    def retention_for(self, policy: Policy, reduction: float) -> float | None:
        """The greatest retention below 1, in steps of 0.0001, that saves at least this share; None = none does."""

        def reaches(step: int) -> bool:
            changed = msgspec.structs.replace(policy, retention=step / STEPS)
            return self.reduction(changed) >= reduction

        best = greatest_step(reaches, STEPS)
        return None if best is None else best / STEPS

    def _mean(self, policy: Policy) -> tuple[float, float]:
        pruned = full = 0
        for (tokens, visual_tokens), count in self._sizes.items():
            request = compare_prefill(self._info, policy, tokens=tokens, visual_tokens=visual_tokens)
            pruned += count * request.prefill.total
            full += count * request.unmodified.total
        total = self._sizes.total()
        return pruned / total, full / total
