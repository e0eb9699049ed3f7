# SPDX-License-Identifier: Apache-2.0
"""The settings that are compared: methods, fastmmoe's two halves and their retentions, and what each costs by count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.budget import STEPS, greatest_step
from fastmmoe.runtime.cost.flops import count_prefill, vision_flops
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import ALL, FASTMMOE, FASTV, RANDOM, SPARSEVLM, UNMODIFIED
from fastmmoe.runtime.method.schedule import Schedule, plan_request

FULL, REDUCTION, PRUNING = UNMODIFIED, "reduction", "pruning"
VARIANTS = (FULL, FASTMMOE, REDUCTION, PRUNING, RANDOM, FASTV, SPARSEVLM)
"""The methods of a comparison bundle, and fastmmoe's halves: fewer experts alone, pruning alone."""
LABELS = {
    FULL: "full model",
    FASTMMOE: "FastMMoE",
    REDUCTION: "fewer experts only",
    PRUNING: "pruning only",
    RANDOM: "random",
    FASTV: "FastV",
    SPARSEVLM: "SparseVLM",
}
"""What a user reads of each."""
BASELINES = (FASTV, SPARSEVLM, RANDOM)
RETENTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


class Setting(msgspec.Struct, frozen=True, order=True):
    """A variant at a retention: one point of the comparison. The full model and `reduction` keep every token."""

    variant: str
    retention: float = 1.0

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.variant}-{self.retention:.4f}"


@dataclass(frozen=True)
class Prompt:
    """Counts of a question that its FLOPs depend on: T tokens, V visual ones among them, tiles of its picture."""

    tokens: int
    visual_tokens: int
    tiles: int


@dataclass(frozen=True)
class Cost:
    """Means over the questions.

    Attributes:
        gflops: FLOPs of the language model's prefill.
        reduction, reduction_with_vision: shares saved of the full model's.
        kept: visual tokens of the most frequent prompt, before and after each stage.
    """

    gflops: float
    reduction: float
    reduction_with_vision: float
    kept: tuple[int, ...]


class Planner:
    """Schedules and FLOPs of settings for the questions of a data set.

    Args:
        prompts: one for every question.
    Raises:
        InvalidRequest: the bundle does not hold every method.
    """

    def __init__(self, manifest: Manifest, prompts: Iterable[Prompt]) -> None:
        if manifest.policy.method != ALL:
            raise InvalidRequest(
                f"the bundle holds method {manifest.policy.method}: the report compares methods, "
                f"export with --method {ALL}"
            )
        self._manifest, self._prompts = manifest, Counter(prompts)
        self._costs: dict[Setting, Cost] = {}
        self._counted: dict[tuple[Setting, Prompt], int] = {}
        self._typical = max(self._prompts, key=lambda p: (self._prompts[p], p.tokens, p.visual_tokens, p.tiles))

    def options(self, setting: Setting) -> dict[str, Any]:
        """The fields of `RequestOptions` that give the setting."""
        if setting.variant == FULL:
            return {"method": FULL}
        options: dict[str, Any] = {"method": setting.variant, "retention": setting.retention}
        if setting.variant == REDUCTION:
            return options | {"method": FASTMMOE, "visual_top_k": self._manifest.policy.visual_top_k}
        if setting.variant == PRUNING:
            return options | {"method": FASTMMOE, "visual_top_k": self._manifest.language_model.top_k}
        return options

    def schedule(self, setting: Setting, visual_tokens: int) -> Schedule:
        """The setting's schedule of one prompt."""
        info = self._manifest.language_model
        return plan_request(
            self._manifest.policy,
            visual_tokens=visual_tokens,
            moe_layers=info.moe_layers,
            top_k=info.top_k,
            **self.options(setting),
        )

    def cost(self, setting: Setting) -> Cost:
        """The setting's cost, counted once."""
        if setting not in self._costs:
            self._costs[setting] = self._mean_cost(setting)
        return self._costs[setting]

    def at_reduction(self, variant: str, reduction: float) -> Setting:
        """The mildest setting of a variant, in steps of 1 / STEPS, that saves this share over all questions.

        Raises:
            InvalidRequest: no retention does.
        """

        def saved(step: int) -> float:
            return self.cost(Setting(variant, step / STEPS)).reduction

        best = greatest_step(lambda step: saved(step) >= reduction, STEPS)
        if best is None:
            raise InvalidRequest(
                f"no retention of {variant} saves {reduction:.2%} of the prefill: {1 / STEPS:g} saves {saved(1):.2%}"
            )
        return Setting(variant, best / STEPS)

    def _mean_cost(self, setting: Setting) -> Cost:
        manifest, prompts = self._manifest, self._prompts
        hidden_size = manifest.language_model.hidden_size
        total = sum(self._flops(setting, prompt) * n for prompt, n in prompts.items())
        unmodified = sum(self._flops(Setting(FULL), prompt) * n for prompt, n in prompts.items())
        vision = sum(vision_flops(manifest.vision, hidden_size, prompt.tiles) * n for prompt, n in prompts.items())
        typical = self.schedule(setting, self._typical.visual_tokens)
        return Cost(
            gflops=total / sum(prompts.values()) / 1e9,
            reduction=1 - total / unmodified,
            reduction_with_vision=1 - (total + vision) / (unmodified + vision),
            kept=(typical.visual_tokens, *typical.kept_visual_tokens),
        )

    def _flops(self, setting: Setting, prompt: Prompt) -> int:
        key = (setting, prompt)
        if key not in self._counted:
            schedule = self.schedule(setting, prompt.visual_tokens)
            info, policy = self._manifest.language_model, self._manifest.policy
            self._counted[key] = count_prefill(info, policy, schedule, prompt.tokens).total
        return self._counted[key]


def curve_settings(retentions: Sequence[float]) -> list[Setting]:
    """The full model, expert reduction alone, and every other variant at every retention."""
    curves = [v for v in VARIANTS if v not in (FULL, REDUCTION)]
    return [Setting(FULL), Setting(REDUCTION), *(Setting(v, R) for v in curves for R in retentions)]
