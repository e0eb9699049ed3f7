# SPDX-License-Identifier: Apache-2.0
"""Default settings of a model's pruning methods and the check of those a user gives (spec sections 3 and 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.policy import ALL, METHODS, SPARSEVLM_COUNTS, Method, Policy, check_retention

MethodOption: TypeAlias = Literal["none", "fastmmoe", "random", "fastv", "sparsevlm", "all"]
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
WINDOW = 3
REDUCTION_START_LAYER = 2
EXPERT_FACTOR = 0.5
RETENTION = 0.5


@dataclass(frozen=True)
class PolicyOptions:
    """What a user may set at export; None = the default of the family and the method.

    prune_layers are those of the method; with method "all", of fastmmoe and random.
    """

    method: MethodOption = "fastmmoe"
    retention: float = RETENTION
    prune_layers: tuple[int, ...] | None = None
    expert_factor: float = EXPERT_FACTOR
    alpha: float | None = None
    merge_ratio: float | None = None
    window: int = WINDOW
    merge: Literal["mlerp", "mean"] = "mlerp"
    reduction_weights: Literal["preserve_sum", "none"] = "preserve_sum"
    sparsevlm_positions: Literal["compact", "original"] = "compact"


@dataclass(frozen=True)
class Layers:
    """What pruning needs to know of a decoder's layers: their number, those with a MoE block, with full attention."""

    count: int
    moe: tuple[int, ...]
    full_attention: tuple[int, ...]

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
        InvalidRequest: a value outside its range, with the range; layers that the method cannot prune at.
    """
    row = FAMILY_ROWS[family]
    if options.method not in METHOD_OPTIONS:
        raise InvalidRequest(f"--method {options.method}: expected one of {', '.join(METHOD_OPTIONS)}")
    if options.method == "none" and options.prune_layers is not None:
        raise InvalidRequest("--prune-layers: --method none prunes nothing")
    policy = Policy(
        method=options.method,
        prune_layers=_prune_layers(options, row, layers),
        retention=1.0 if options.method == "none" else check_retention(options.retention),
        alpha=row.alpha if options.alpha is None else options.alpha,
        merge_ratio=row.merge_ratio if options.merge_ratio is None else options.merge_ratio,
        window=options.window,
        merge=options.merge,
        reduction_start_layer=REDUCTION_START_LAYER,
        expert_factor=options.expert_factor,
        reduction_weights=options.reduction_weights,
        sparsevlm_positions=options.sparsevlm_positions,
    )
    _check_range("--alpha", policy.alpha, 0, 1)
    _check_range("--merge-ratio", policy.merge_ratio, 0, 1)
    _check_range("--window", policy.window, 1, 64)
    if not 0 < policy.expert_factor <= 1:
        raise InvalidRequest(f"--expert-factor {policy.expert_factor}: expected a number in (0, 1]")
    return policy


def _prune_layers(options: PolicyOptions, row: FamilyRow, layers: Layers) -> dict[Method, tuple[int, ...]]:
    """The layers of every method in the graph."""
    if options.method == "none":
        return {}
    if options.method != "all":
        return {options.method: _layers_of(options.method, options.prune_layers, row, layers)}
    ours = _layers_of("fastmmoe", options.prune_layers, row, layers)
    rest = {method: _layers_of(method, None, row, layers) for method in ("fastv", "sparsevlm")}
    return {"fastmmoe": ours, "random": ours, "fastv": rest["fastv"], "sparsevlm": rest["sparsevlm"]}


def _layers_of(method: Method, given: tuple[int, ...] | None, row: FamilyRow, layers: Layers) -> tuple[int, ...]:
    """The given layers of one method, checked, or its default ones."""
    if given is not None:
        return _checked_layers(method, given, layers)
    if method == "fastv":
        chosen = tuple(i + 1 for i in layers.scored if i + 1 >= FASTV_LAYER)[:1]
    elif layers.count < 4:
        raise InvalidRequest(
            f"a model of {layers.count} layers has no default prune layers of {method}: give --prune-layers"
        )
    elif method == "sparsevlm":
        chosen = scaled_layers(SPARSEVLM_LAYERS, SPARSEVLM_DEPTH, layers.count, layers.scored)
    else:
        chosen = scaled_layers(row.prune_layers, row.layers, layers.count, layers.prunable)
    if not chosen:
        raise InvalidRequest(f"method {method}: none of the model's {layers.count} layers can prune")
    return chosen


def _checked_layers(method: Method, given: tuple[int, ...], layers: Layers) -> tuple[int, ...]:
    shown = ",".join(map(str, given))
    if not given:
        raise InvalidRequest("--prune-layers is empty: give layers such as 2,5,8, or --method none")
    if list(given) != sorted(set(given)):
        raise InvalidRequest(f"--prune-layers {shown}: expected ascending layers without repetition")
    if given[0] < 0 or given[-1] >= layers.count:
        raise InvalidRequest(f"--prune-layers {shown}: the model has layers 0 to {layers.count - 1}")
    most = {"fastv": 1, "sparsevlm": len(SPARSEVLM_COUNTS)}.get(method, layers.count)
    if len(given) > most:
        raise InvalidRequest(f"--prune-layers {shown}: {method} prunes at most {most} times")
    possible, what = {
        "fastv": (tuple(i + 1 for i in layers.scored), "no full attention right before it"),
        "sparsevlm": (layers.scored, "no full attention or is the last"),
    }.get(method, (layers.prunable, "no MoE block with full attention"))
    wrong = [layer for layer in given if layer not in possible]
    if wrong:
        raise InvalidRequest(
            f"--prune-layers {shown}: layer {wrong[0]} has {what}; "
            f"possible for {method} are {','.join(map(str, possible))}"
        )
    return given


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} {value}: expected {low} to {high}")
