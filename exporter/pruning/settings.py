# SPDX-License-Identifier: Apache-2.0
"""Default settings of a model's pruning methods and the check of those a user gives (docs/methods.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import msgspec

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import (
    ALL,
    FASTMMOE,
    FASTV,
    METHODS,
    RANDOM,
    SETTINGS,
    SPARSEVLM,
    UNMODIFIED,
    Method,
    MethodOption,
    Policy,
)
from fastmmoe.runtime.method.schedule import SPARSEVLM_COUNTS, check_retention, even_exponents, reduce_experts
from fastmmoe.runtime.ranges import ExpertsPerToken, LayerIndex, limits
from fastmmoe.runtime.ranges import Layers as LayerCount

METHOD_OPTIONS = (*METHODS, ALL)


@dataclass(frozen=True)
class FamilyRow:
    """The settings FastMMoE's authors use for one family, at the depth they use it."""

    layers: int
    prune_layers: tuple[int, ...]
    alpha: float
    merge_ratio: float


FAMILY_ROWS = {
    "deepseek_vl2": FamilyRow(layers=27, prune_layers=(2, 5, 8), alpha=0.3, merge_ratio=0.05),
    "internvl3_5": FamilyRow(layers=48, prune_layers=(5, 8, 12), alpha=0.5, merge_ratio=0.025),
}
SPARSEVLM_LAYERS, SPARSEVLM_DEPTH = (2, 6, 15), 32
FASTV_LAYER = 2
EXPERT_FACTOR = 0.5
MOST_SHOWN = 128
"""Numbers of a list that a message holds: all layers of every published model."""


class PolicyModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model that settings were found for.

    Attributes:
        family, layers, moe_layers, top_k: its shape; the settings are refused by a model of another one.
        checkpoint_identity: `Checkpoint.identity`. A checkpoint of another one is not refused, as a model that was
            trained further may use the settings too; the export says it.
    """

    family: str
    layers: LayerCount
    moe_layers: tuple[LayerIndex, ...]
    top_k: ExpertsPerToken
    checkpoint_identity: str


_Settings: Any = make_dataclass(
    "_Settings",
    [(s.name, s.type if s.default is not None else s.type | None, field(default=s.default)) for s in SETTINGS.values()],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(_Settings):  # type: ignore[misc]
    """Pruning options of an export: the settings of `SETTINGS` and these; None = the default of family and method.

    Attributes:
        prune_layers: those of the method; with method "all", of fastmmoe and random.
        stage_exponents: one for each prune layer of fastmmoe and random, as in `Policy`; None = s / S.
        expert_factor: share of the model's experts that visual tokens use from layer 2 on; None = EXPERT_FACTOR.
        visual_top_k: instead of expert_factor, one number for every MoE layer.
        found_for: the model that the settings were found for; None = they are for any.
    """

    method: MethodOption = FASTMMOE
    prune_layers: tuple[int, ...] | None = None
    stage_exponents: tuple[float, ...] | None = None
    expert_factor: float | None = None
    visual_top_k: tuple[int, ...] | None = None
    found_for: PolicyModel | None = None


@dataclass(frozen=True)
class Layers:
    """Layers of a decoder, as pruning needs to know them.

    Attributes:
        count: number of all layers.
        moe, full_attention: those with a MoE block, with full attention.
        top_k: experts per token.
    """

    count: int
    moe: tuple[int, ...]
    full_attention: tuple[int, ...]
    top_k: int

    @property
    def prunable(self) -> tuple[int, ...]:
        """Layers that fastmmoe and random may prune in."""
        return tuple(i for i in self.moe if i in self.full_attention)

    @property
    def scored(self) -> tuple[int, ...]:
        """Layers after which fastv and sparsevlm may prune: with full attention, not the last."""
        return tuple(i for i in self.full_attention if i < self.count - 1)


def scaled_layers(listed: tuple[int, ...], depth: int, layers: int, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Layers chosen for a decoder of one depth, in one of another.

    Target floor(l * L / L_row + 0.5); of the candidates the first that is >= target and after the previous choice;
    none left = fewer stages.
    """
    chosen: list[int] = []
    for layer in listed:
        target = math.floor(layer * layers / depth + 0.5)
        chosen += [c for c in candidates if c >= target and c > (chosen[-1] if chosen else -1)][:1]
    return tuple(chosen)


def resolve_policy(options: PolicyOptions, *, family: str, layers: Layers) -> Policy:
    """The complete policy of an export.

    Raises:
        InvalidRequest: a value outside its range, with the range; layers that the method cannot prune at; settings
            that were found for a model of another shape.
    """
    row = FAMILY_ROWS[family]
    check_options(options)
    if options.found_for is not None:
        _check_shape(options.found_for, family, layers)
    prune_layers = _prune_layers(options, row, layers)
    stages = len(prune_layers.get(FASTMMOE, prune_layers.get(RANDOM, ())))
    given = {name: getattr(options, name) for name in SETTINGS}
    settings = {name: getattr(row, name) if value is None else value for name, value in given.items()}
    settings["retention"] = 1.0 if options.method == UNMODIFIED else float(options.retention)
    return Policy(
        method=options.method,
        prune_layers=prune_layers,
        stage_exponents=_stage_exponents(options, stages),
        visual_top_k=_visual_top_k(options, layers),
        **settings,
    )


def check_options(options: PolicyOptions) -> None:
    """Raise InvalidRequest where an option is wrong for every model."""
    _check_method(options)
    check_retention(options.retention)
    _check_types(options)
    for name in SETTINGS:
        value = getattr(options, name)
        if value is not None:
            check_setting(name, value, shown=f"--{name.replace('_', '-')}")
    factor = options.expert_factor
    if factor is not None and not 0 < factor <= 1:
        raise InvalidRequest(f"--expert-factor {factor}: expected a number in (0, 1]")
    if factor is not None and options.visual_top_k is not None:
        raise InvalidRequest("give expert_factor or visual_top_k, not both")
    if options.prune_layers is not None:
        _check_order(options.prune_layers)


def _check_method(options: PolicyOptions) -> None:
    method = options.method
    if method not in METHOD_OPTIONS:
        raise InvalidRequest(f"--method {method}: expected one of {', '.join(METHOD_OPTIONS)}")
    if options.stage_exponents is not None and method not in (FASTMMOE, RANDOM, ALL):
        raise InvalidRequest(
            f"--method {method}: --policy and stage_exponents are for the stages of fastmmoe: expected --method "
            f"fastmmoe, random or all"
        )
    if method == UNMODIFIED and options.prune_layers is not None:
        raise InvalidRequest("--prune-layers: --method none prunes nothing")


def _check_types(options: PolicyOptions) -> None:
    """Raise InvalidRequest for an option of another type, which Python callers may give."""
    try:
        msgspec.convert(vars(options), PolicyOptions)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"pruning options: {error}") from error


def _check_shape(found_for: PolicyModel, family: str, layers: Layers) -> None:
    """Raise InvalidRequest unless the model has the shape that settings were found for."""
    ours = {"family": family, "layers": layers.count, "moe_layers": layers.moe, "top_k": layers.top_k}
    for name, value in ours.items():
        theirs = getattr(found_for, name)
        if theirs != value:
            raise InvalidRequest(
                f"--policy: its settings were found for a model with {name} {shown_numbers(theirs)}, this one has "
                f"{shown_numbers(value)}: find settings for this model"
            )


def _stage_exponents(options: PolicyOptions, stages: int) -> tuple[float, ...]:
    if options.stage_exponents is None:
        return even_exponents(stages)
    check_exponents(options.stage_exponents, stages)
    return options.stage_exponents


def _visual_top_k(options: PolicyOptions, layers: Layers) -> tuple[int, ...]:
    """The given experts of every MoE layer, checked, or those of the share."""
    factor = EXPERT_FACTOR if options.expert_factor is None else options.expert_factor
    if options.visual_top_k is None:
        return reduce_experts(layers.moe, layers.top_k, reduced_top_k(layers.top_k, factor))
    check_visual_top_k(options.visual_top_k, len(layers.moe), layers.top_k)
    return options.visual_top_k


def reduced_top_k(top_k: int, expert_factor: float) -> int:
    """k_v = max(1, floor(k * expert_factor + 0.5))."""
    return max(1, math.floor(top_k * expert_factor + 0.5))


def _prune_layers(options: PolicyOptions, row: FamilyRow, layers: Layers) -> dict[Method, tuple[int, ...]]:
    """The layers of every method in the graph."""
    if options.method == UNMODIFIED:
        return {}
    if options.method != ALL:
        return {options.method: _layers_of(options.method, options.prune_layers, row, layers)}
    ours = _layers_of(FASTMMOE, options.prune_layers, row, layers)
    fastv, sparsevlm = (_layers_of(method, None, row, layers) for method in (FASTV, SPARSEVLM))
    return {FASTMMOE: ours, RANDOM: ours, FASTV: fastv, SPARSEVLM: sparsevlm}


def _layers_of(method: Method, given: tuple[int, ...] | None, row: FamilyRow, layers: Layers) -> tuple[int, ...]:
    """The given layers of one method, checked, or its default ones."""
    if given is not None:
        return _checked_layers(method, given, layers)
    if method == FASTV:
        chosen = tuple(i + 1 for i in layers.scored if i + 1 >= FASTV_LAYER)[:1]
    elif layers.count < 4:
        raise InvalidRequest(
            f"a model of {layers.count} layers has no default prune layers of {method}: give --prune-layers"
        )
    elif method == SPARSEVLM:
        chosen = scaled_layers(SPARSEVLM_LAYERS, SPARSEVLM_DEPTH, layers.count, layers.scored)
    else:
        chosen = scaled_layers(row.prune_layers, row.layers, layers.count, layers.prunable)
    if not chosen:
        raise InvalidRequest(f"method {method}: none of the model's {layers.count} layers can prune")
    return chosen


def _check_order(given: tuple[int, ...]) -> None:
    if not given:
        raise InvalidRequest("--prune-layers is empty: give layers such as 2,5,8, or --method none")
    if list(given) != sorted(set(given)):
        raise InvalidRequest(f"--prune-layers {shown_numbers(given)}: expected ascending layers without repetition")


def _checked_layers(method: Method, given: tuple[int, ...], layers: Layers) -> tuple[int, ...]:
    shown = shown_numbers(given)
    if given[0] < 0 or given[-1] >= layers.count:
        raise InvalidRequest(f"--prune-layers {shown}: the model has layers 0 to {layers.count - 1}")
    most = {FASTV: 1, SPARSEVLM: len(SPARSEVLM_COUNTS)}.get(method, layers.count)
    if len(given) > most:
        raise InvalidRequest(f"--prune-layers {shown}: {method} prunes at most {most} times")
    possible, what = {
        FASTV: (tuple(i + 1 for i in layers.scored), "no full attention right before it"),
        SPARSEVLM: (layers.scored, "no full attention or is the last"),
    }.get(method, (layers.prunable, "no MoE block with full attention"))
    wrong = [layer for layer in given if layer not in possible]
    if wrong:
        raise InvalidRequest(
            f"--prune-layers {shown}: layer {wrong[0]} has {what}; possible for {method} are {shown_numbers(possible)}"
        )
    return given


def check_exponents(exponents: tuple[float, ...], stages: int) -> None:
    """Raise InvalidRequest unless there is one for each stage, ascending, in (0, 1], the last 1."""
    ascends = all(a < b for a, b in zip((0.0, *exponents), exponents, strict=False))
    if len(exponents) != stages or not ascends or exponents[-1] != 1:
        raise InvalidRequest(
            f"stage_exponents {shown_numbers(exponents)}: expected {stages} (one for each prune layer), ascending, "
            f"above 0, the last 1"
        )


def check_visual_top_k(visual_top_k: tuple[int, ...], count: int, top_k: int) -> None:
    """Raise InvalidRequest unless there is one for each MoE layer, from 1 to top_k."""
    if len(visual_top_k) != count or not all(1 <= k <= top_k for k in visual_top_k):
        raise InvalidRequest(
            f"visual_top_k {shown_numbers(visual_top_k)}: expected {count} (one for each MoE layer) of 1 to {top_k}, "
            f"the model's experts per token"
        )


def check_setting(name: str, value: Any, *, shown: str) -> None:
    """Raise InvalidRequest unless a number is in the setting's range; shown: what the message calls it."""
    setting = SETTINGS[name]
    if name == "retention":
        check_retention(value)
    elif not setting.choices:
        low, _, high = limits(setting.kind)
        if not low <= value <= high:
            raise InvalidRequest(f"{shown} {value}: expected {low} to {high}")


def shown_numbers(value: object) -> str:
    """A number or a list of numbers as messages show it."""
    if not isinstance(value, tuple):
        return str(value)
    more = f" and {len(value) - MOST_SHOWN} more" if len(value) > MOST_SHOWN else ""
    return ",".join(map(str, value[:MOST_SHOWN])) + more
