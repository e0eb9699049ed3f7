# SPDX-License-Identifier: Apache-2.0
"""Pruning methods and their settings: what a bundle stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from fastmmoe.runtime.ranges import Experts, LayerIndex, PatchCount, PositiveShare, Share

Method: TypeAlias = Literal["none", "fastmmoe", "random", "fastv", "sparsevlm"]
PruneLayers: TypeAlias = Annotated[tuple[LayerIndex, ...], Meta(min_length=1, max_length=1024)]
Exponents: TypeAlias = Annotated[tuple[PositiveShare, ...], Meta(max_length=1024)]
LayerExperts: TypeAlias = Annotated[tuple[Experts, ...], Meta(max_length=1024)]
MethodOption: TypeAlias = Literal[Method, "all"]
UNMODIFIED: Final = "none"
FASTMMOE: Final = "fastmmoe"
RANDOM: Final = "random"
FASTV: Final = "fastv"
SPARSEVLM: Final = "sparsevlm"
METHODS: tuple[Method, ...] = (UNMODIFIED, FASTMMOE, RANDOM, FASTV, SPARSEVLM)
"""Their places are the values of the graph's input `method`."""

ALL: Final = "all"
"""Method of a comparison bundle, whose graph holds the prune sites of every method."""

MLERP: Final = "mlerp"
MEAN: Final = "mean"
MERGES = (MLERP, MEAN)
"""Vectors of a merged window: the mean at its tokens' greatest norm, or the mean."""

PRESERVE_SUM: Final = "preserve_sum"
KEEP_WEIGHTS: Final = "none"
REDUCTIONS = (PRESERVE_SUM, KEEP_WEIGHTS)
"""What becomes of the weights of a visual token's remaining experts."""


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

    @property
    def watches(self) -> bool:
        """Whether its scores are of the layer's attention."""
        return self.methods != (RANDOM,)


@dataclass(frozen=True)
class Setting:
    """A field of `Policy` that a user gives by its name: at export, in a policy file, on the command line.

    Attributes:
        kind: annotation of the field, with its range or its choices.
        what: it is, as help texts and documents say it.
        default: of an export; None = that of the model's family.
        metavar: what stands for a number in a help text.
        in_file: a policy file holds it.
    """

    name: str
    kind: Any
    what: str
    default: Any
    metavar: str
    in_file: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The legal words; empty for numbers."""
        return get_args(get_args(self.kind)[0])

    @property
    def type(self) -> Any:
        """float, int or the choices, without a range."""
        return get_args(self.kind)[0]


def _setting(what: str, *, default: Any = None, metavar: str = "", in_file: bool = True) -> Meta:
    return Meta(description=what, extra={"default": default, "metavar": metavar, "in_file": in_file})


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pruning settings of a bundle; docs/methods.md has the rules.

    Attributes:
        method: the pruning built into the graph; "none" is the unmodified model, "all" a comparison of every method.
        prune_layers: of each method in the graph but "none", ascending, in the method's own terms. fastmmoe, random:
            layers in front of whose MoE block tokens are pruned. fastv: the first layer that runs on fewer tokens (K).
            sparsevlm: layers after which tokens are pruned.
        stage_exponents: e_s of fastmmoe and random, one for each of their prune layers, ascending, in (0, 1], the last
            1: at retention R stage s leaves the share R^e_s. Empty without these methods.
        visual_top_k: experts of a visual token in every MoE layer, by fastmmoe at a retention below 1.

    The others are settings (`SETTINGS`), each said at its place. A new one is one field here, and its use.
    """

    method: MethodOption
    prune_layers: dict[Method, PruneLayers]
    stage_exponents: Exponents
    retention: Annotated[
        PositiveShare,
        _setting(
            "share of visual tokens left after the last stage where a request names none", default=0.5, metavar="R"
        ),
    ]
    alpha: Annotated[Share, _setting("weight of redundancy against importance", metavar="A")]
    merge_ratio: Annotated[Share, _setting("merged windows per kept token", metavar="M")]
    window: Annotated[PatchCount, _setting("tokens per window", default=3, metavar="N")]
    merge: Annotated[Literal["mlerp", "mean"], _setting("vector of a merged window", default=MLERP)]
    visual_top_k: LayerExperts
    reduction_weights: Annotated[
        Literal["preserve_sum", "none"],
        _setting("weights of the remaining experts where the model does not renormalise", default=PRESERVE_SUM),
    ]
    sparsevlm_positions: Annotated[
        Literal["compact", "original"],
        _setting(
            "after a stage of sparsevlm tokens are numbered anew, as its version 1.5 does, or keep their numbers",
            default="compact",
            in_file=False,
        ),
    ]

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that a request may choose."""
        return (UNMODIFIED, *self.prune_layers)

    @property
    def default_method(self) -> Method:
        """The method of a request that chooses none."""
        return FASTMMOE if self.method == ALL else self.method

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


def _settings() -> dict[str, Setting]:
    found = {}
    for name, kind in get_type_hints(Policy, include_extras=True).items():
        meta = get_args(kind)[-1] if get_origin(kind) is Annotated else None
        if isinstance(meta, Meta) and meta.extra is not None and meta.description is not None:
            found[name] = Setting(name, kind, meta.description, **meta.extra)
    return found


SETTINGS = _settings()
"""The settings among a policy's fields, by name."""

# They sort in the order in which a layer has them.
_MOE, _OUTPUT = "1 moe", "2 output"


def _place(method: Method, layer: int) -> tuple[int, str, str]:
    """Layer and point of a method's prune layer, and what keeps sites apart that cannot be shared."""
    if method in (FASTMMOE, RANDOM):
        return layer, _MOE, ""
    return layer - 1 if method == FASTV else layer, _OUTPUT, method
