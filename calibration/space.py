# SPDX-License-Identifier: Apache-2.0
"""The space of the search: parameters of a trial, and the settings of an export that they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions
from fastmmoe.runtime.method.policy import FASTMMOE, SETTINGS, Policy
from fastmmoe.runtime.method.schedule import REDUCTION_START_LAYER

MOST_STAGES = 4
MOST_EXPERT_GROUPS = 8
RETENTIONS = (0.03, 0.99)
MERGE_RATIOS = (0.0, 1.0)
WINDOWS = (2, 8)

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """The search space of one model. All trials have the same parameters.

    first, gap_2, gap_3, gap_4: the prune layers, as places among the layers that may prune: the first one, and how far
    each is from the one before; 0, or a place beyond the last layer, ends the list. share_1 to share_4: stage s has the
    exponent (share_1 + ... + share_s) / (sum over all stages). experts_g: experts of a visual token in group g of the
    MoE layers. retention, alpha, merge_ratio, window, merge: as in `Policy`.

    Args:
        default: the policy of an export without options; it is in the space.
    """

    layers: Layers
    default: Policy

    @property
    def expert_groups(self) -> tuple[tuple[int, ...], ...]:
        """Neighbouring MoE layers that share a number of experts, by layer number: one layer each in small models."""
        moe = self.layers.moe
        if len(moe) <= MOST_EXPERT_GROUPS:
            return tuple((layer,) for layer in moe)
        # The default changes the number of experts at this layer, so a group must end before it.
        early = tuple(i for i in moe if i < REDUCTION_START_LAYER)
        late = moe[len(early) :]
        count = MOST_EXPERT_GROUPS - bool(early)
        bounds = [round(i * len(late) / count) for i in range(count + 1)]
        groups = [early, *(late[a:b] for a, b in itertools.pairwise(bounds))]
        return tuple(group for group in groups if group)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The range of every parameter."""
        places, found = len(self.layers.prunable), {}
        found["retention"] = FloatDistribution(*RETENTIONS)
        found["alpha"] = FloatDistribution(0.0, 1.0)
        found["merge_ratio"] = FloatDistribution(*MERGE_RATIOS)
        ranges: dict[str, BaseDistribution] = dict(found)
        ranges["window"] = IntDistribution(*WINDOWS)
        ranges["merge"] = CategoricalDistribution(SETTINGS["merge"].choices)
        ranges["first"] = IntDistribution(0, places - 1)
        for stage in range(1, min(MOST_STAGES, places) + 1):
            ranges[f"share_{stage}"] = FloatDistribution(0.1, 1.0)
            if stage > 1:
                ranges[f"gap_{stage}"] = IntDistribution(0, self._most_gap)
        for group in range(len(self.expert_groups)):
            ranges[f"experts_{group}"] = IntDistribution(1, self.layers.top_k)
        return ranges

    @property
    def _most_gap(self) -> int:
        return max(3, len(self.layers.prunable) // 3)

    def options(self, params: Params) -> PolicyOptions:
        """The settings of an export that parameters stand for; numbers are rounded to what a person would write."""
        places = self._places(params)
        shares = [round(params[f"share_{stage}"], 2) for stage in range(1, len(places) + 1)]
        sums = list(itertools.accumulate(shares))
        experts = {
            layer: params[f"experts_{group}"] for group, layers in enumerate(self.expert_groups) for layer in layers
        }
        return PolicyOptions(
            method=FASTMMOE,
            retention=round(params["retention"], 4),
            prune_layers=tuple(self.layers.prunable[place] for place in places),
            stage_exponents=tuple(value / sums[-1] for value in sums),
            visual_top_k=tuple(experts[layer] for layer in self.layers.moe),
            alpha=round(params["alpha"], 3),
            merge_ratio=round(params["merge_ratio"], 3),
            window=params["window"],
            merge=params["merge"],
        )

    def default_params(self, retention: float) -> dict[str, Any]:
        """Parameters of the default schedule at this retention."""
        policy, prunable = self.default, self.layers.prunable
        places = [prunable.index(layer) for layer in policy.prune_layers[FASTMMOE]]
        gaps = [b - a for a, b in itertools.pairwise(places)]
        params: dict[str, Any] = {name: 0 for name in self.distributions if name.startswith("gap_")}
        params |= {name: 1.0 for name in self.distributions if name.startswith("share_")}
        params |= {f"gap_{stage}": gap for stage, gap in enumerate(gaps, start=2)}
        for group, layers in enumerate(self.expert_groups):
            params[f"experts_{group}"] = policy.visual_top_k[self.layers.moe.index(layers[0])]
        return params | {
            "retention": retention,
            "alpha": policy.alpha,
            "merge_ratio": policy.merge_ratio,
            "window": policy.window,
            "merge": policy.merge,
            "first": places[0],
        }

    def _places(self, params: Params) -> list[int]:
        places = [params["first"]]
        for stage in range(2, MOST_STAGES + 1):
            gap = params.get(f"gap_{stage}", 0)
            if gap == 0 or places[-1] + gap >= len(self.layers.prunable):
                break
            places.append(places[-1] + gap)
        return places
