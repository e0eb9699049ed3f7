# SPDX-License-Identifier: Apache-2.0
"""Pruning methods and their settings: what a bundle stores."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fastmmoe.runtime.ranges import Experts, LayerIndex, PatchCount, PositiveShare, Share

Method: TypeAlias = Literal["none", "fastmmoe", "random", "fastv", "sparsevlm"]
PruneLayers: TypeAlias = Annotated[tuple[LayerIndex, ...], Meta(min_length=1, max_length=1024)]
Exponents: TypeAlias = Annotated[tuple[PositiveShare, ...], Meta(max_length=1024)]
LayerExperts: TypeAlias = Annotated[tuple[Experts, ...], Meta(max_length=1024)]
METHODS: tuple[Method, ...] = ("none", "fastmmoe", "random", "fastv", "sparsevlm")
"""Their places are the values of the graph's input `method`."""

ALL = "all"
"""Method of a comparison bundle, whose graph holds the prune sites of every method."""


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place of the graph where visual tokens are pruned.

    Attributes:
        layer: the decoder layer whose attention gives the scores; the first that still caches every token.
        point: "moe" = between its attention and its MoE block, "output" = after the layer.
        methods: those that prune here; for every other one the site is the identity.
    """

    layer: int
    point: Literal["moe", "output"]
    methods: tuple[Method, ...]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pruning settings of a bundle; docs/methods.md has the rules.

    Attributes:
        method: the pruning built into the graph; "none" is the unmodified model, "all" a comparison of every method.
        prune_layers: of each method in the graph but "none", ascending, in the method's own terms. fastmmoe, random:
            layers in front of whose MoE block tokens are pruned. fastv: the first layer that runs on fewer tokens (K).
            sparsevlm: layers after which tokens are pruned.
        stage_exponents: e_s of fastmmoe and random, one for each of their prune layers, ascending, in (0, 1], the last
            1: at retention R stage s leaves the share R^e_s. Empty without these methods.
        retention: default share of visual tokens left after the last stage, in (0, 1].
        alpha: weight of redundancy against importance. merge_ratio: merged windows per kept token.
        window: tokens per window. merge: vector of a merged window.
        visual_top_k: experts of a visual token in every MoE layer, by fastmmoe at a retention below 1.
        reduction_weights: rule for the kept weights where the model does not renormalise.
        sparsevlm_positions: after a stage of sparsevlm, "compact" = tokens are numbered anew (v1.5), "original" = they
            keep their numbers (v2.0).
    """

    method: Literal["none", "fastmmoe", "random", "fastv", "sparsevlm", "all"]
    prune_layers: dict[Method, PruneLayers]
    stage_exponents: Exponents
    retention: PositiveShare
    alpha: Share
    merge_ratio: Share
    window: PatchCount
    merge: Literal["mlerp", "mean"]
    visual_top_k: LayerExperts
    reduction_weights: Literal["preserve_sum", "none"]
    sparsevlm_positions: Literal["compact", "original"]

    @property
    def methods(self) -> tuple[Method, ...]:
        """What a request may choose."""
        return ("none", *self.prune_layers)

    @property
    def default_method(self) -> Method:
        """The method of a request that chooses none."""
        return "fastmmoe" if self.method == "all" else self.method

    @property
    def sites(self) -> tuple[Site, ...]:
        """The graph's prune sites, in the order in which a token meets them."""
        found: dict[tuple[int, str, str], list[Method]] = {}
        for method, layers in self.prune_layers.items():
            for layer in layers:
                found.setdefault(_place(method, layer), []).append(method)
        return tuple(
            Site(layer=layer, point="moe" if point == _MOE else "output", methods=tuple(methods))
            for (layer, point, _), methods in sorted(found.items())
        )


# They sort in the order in which a layer has them.
_MOE, _OUTPUT = "1 moe", "2 output"


def _place(method: Method, layer: int) -> tuple[int, str, str]:
    """Layer and point of a method's prune layer, and what keeps sites apart that cannot be shared."""
    if method in ("fastmmoe", "random"):
        return layer, _MOE, ""
    return layer - 1 if method == "fastv" else layer, _OUTPUT, method
