# SPDX-License-Identifier: Apache-2.0
"""Default FastMMoE settings of a model and the check of those a user gives (spec section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.policy import Policy, check_retention


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
WINDOW = 3
REDUCTION_START_LAYER = 2
EXPERT_FACTOR = 0.5
RETENTION = 0.5


@dataclass(frozen=True)
class PolicyOptions:
    """What a user may set at export; None = the family's default."""

    method: Literal["fastmmoe", "none"] = "fastmmoe"
    retention: float = RETENTION
    prune_layers: tuple[int, ...] | None = None
    expert_factor: float = EXPERT_FACTOR
    alpha: float | None = None
    merge_ratio: float | None = None
    window: int = WINDOW
    merge: Literal["mlerp", "mean"] = "mlerp"
    reduction_weights: Literal["preserve_sum", "none"] = "preserve_sum"


def scaled_prune_layers(row: FamilyRow, layers: int, prunable: tuple[int, ...]) -> tuple[int, ...]:
    """The row's prune layers at another depth.

    Target floor(l * L / L_row + 0.5); of the prunable layers (MoE, full attention) the first that is >= target and
    after the previous choice; none left = fewer stages.
    """
    chosen: list[int] = []
    for layer in row.prune_layers:
        target = math.floor(layer * layers / row.layers + 0.5)
        candidates = [p for p in prunable if p >= target and p > (chosen[-1] if chosen else -1)]
        chosen += candidates[:1]
    return tuple(chosen)


def resolve_policy(options: PolicyOptions, *, family: str, layers: int, prunable: tuple[int, ...]) -> Policy:
    """The complete policy of an export.

    Args:
        prunable: layers that have a MoE block and full attention.
    Raises:
        InvalidRequest: a value outside its range, with the range.
    """
    row = FAMILY_ROWS[family]
    if options.method == "none":
        prune_layers: tuple[int, ...] = ()
    elif options.prune_layers is not None:
        prune_layers = _checked_layers(options.prune_layers, layers, prunable)
    elif layers < 4:
        raise InvalidRequest(f"a model of {layers} layers has no default prune layers: give --prune-layers")
    else:
        prune_layers = scaled_prune_layers(row, layers, prunable)
    policy = Policy(
        method=options.method,
        prune_layers=prune_layers,
        retention=1.0 if options.method == "none" else check_retention(options.retention),
        alpha=row.alpha if options.alpha is None else options.alpha,
        merge_ratio=row.merge_ratio if options.merge_ratio is None else options.merge_ratio,
        window=options.window,
        merge=options.merge,
        reduction_start_layer=REDUCTION_START_LAYER,
        expert_factor=options.expert_factor,
        reduction_weights=options.reduction_weights,
    )
    _check_range("--alpha", policy.alpha, 0, 1)
    _check_range("--merge-ratio", policy.merge_ratio, 0, 1)
    _check_range("--window", policy.window, 1, 64)
    if not 0 < policy.expert_factor <= 1:
        raise InvalidRequest(f"--expert-factor {policy.expert_factor}: expected a number in (0, 1]")
    return policy


def _checked_layers(given: tuple[int, ...], layers: int, prunable: tuple[int, ...]) -> tuple[int, ...]:
    shown = ",".join(map(str, given))
    if not given:
        raise InvalidRequest("--prune-layers is empty: give layers such as 2,5,8, or --method none")
    if list(given) != sorted(set(given)):
        raise InvalidRequest(f"--prune-layers {shown}: expected ascending layers without repetition")
    if given[0] < 0 or given[-1] >= layers:
        raise InvalidRequest(f"--prune-layers {shown}: the model has layers 0 to {layers - 1}")
    wrong = [layer for layer in given if layer not in prunable]
    if wrong:
        raise InvalidRequest(
            f"--prune-layers {shown}: layer {wrong[0]} has no MoE block with full attention; "
            f"possible are {','.join(map(str, prunable))}"
        )
    return given


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} {value}: expected {low} to {high}")
