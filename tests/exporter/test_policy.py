# SPDX-License-Identifier: Apache-2.0
"""The export's FastMMoE settings: defaults of other depths, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastmmoe.exporter.fastmmoe.policy import FAMILY_ROWS, PolicyOptions, resolve_policy, scaled_prune_layers
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.policy import Policy


def resolve(layers: int = 6, prunable: tuple[int, ...] = (1, 3, 5), **options: Any) -> Policy:
    return resolve_policy(PolicyOptions(**options), family="deepseek_vl2", layers=layers, prunable=prunable)


@pytest.mark.parametrize(
    ("family", "layers", "prunable", "expected"),
    [
        # floor(l * 6 / 27 + 0.5) = 0, 1, 2
        ("deepseek_vl2", 6, range(1, 6), (1, 2, 3)),
        # floor(l * 6 / 48 + 0.5) = 1, 1, 2: after the previous choice
        ("internvl3_5", 6, range(6), (1, 2, 3)),
        ("internvl3_5", 6, (1, 3, 5), (1, 3, 5)),
        # floor(l * 4 / 48 + 0.5) = 0, 1, 1: none is left for the third stage
        ("internvl3_5", 4, (1, 3), (1, 3)),
        ("internvl3_5", 4, range(4), (0, 1, 2)),
        ("deepseek_vl2", 27, (3, 4), (3,)),
        ("deepseek_vl2", 27, (), ()),
    ],
)
def test_prune_layers_at_other_depths(family: str, layers: int, prunable: Any, expected: tuple[int, ...]) -> None:
    assert scaled_prune_layers(FAMILY_ROWS[family], layers, tuple(prunable)) == expected


def test_defaults_of_a_family() -> None:
    assert resolve(27, tuple(range(1, 27))) == Policy(
        method="fastmmoe",
        prune_layers=(2, 5, 8),
        retention=0.5,
        alpha=0.3,
        merge_ratio=0.05,
        window=3,
        merge="mlerp",
        reduction_start_layer=2,
        expert_factor=0.5,
        reduction_weights="preserve_sum",
    )


def test_given_settings_are_taken() -> None:
    policy = resolve(prune_layers=(3, 5), retention=0.25, alpha=0.0, merge_ratio=1.0, window=1, expert_factor=1.0)
    assert (policy.prune_layers, policy.retention, policy.alpha) == ((3, 5), 0.25, 0.0)
    assert (policy.merge_ratio, policy.window, policy.expert_factor) == (1.0, 1, 1.0)


def test_method_none_has_no_stages() -> None:
    policy = resolve(method="none", layers=2)
    assert (policy.method, policy.prune_layers, policy.retention) == ("none", (), 1.0)


def test_a_shallow_model_needs_explicit_layers() -> None:
    with pytest.raises(InvalidRequest, match="a model of 3 layers has no default prune layers: give --prune-layers"):
        resolve(layers=3, prunable=(1,))
    assert resolve(layers=3, prunable=(1,), prune_layers=(1,)).prune_layers == (1,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--prune-layers is empty: give layers such as 2,5,8, or --method none"),
        ((3, 1), "--prune-layers 3,1: expected ascending layers without repetition"),
        ((1, 1), "--prune-layers 1,1: expected ascending layers without repetition"),
        ((-1, 3), "--prune-layers -1,3: the model has layers 0 to 5"),
        ((3, 6), "--prune-layers 3,6: the model has layers 0 to 5"),
        ((1, 2), "--prune-layers 1,2: layer 2 has no MoE block with full attention; possible are 1,3,5"),
    ],
)
def test_impossible_prune_layers(given: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(prune_layers=given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("retention", 0.0, r"retention 0.0: expected a number in \(0, 1\]"),
        ("retention", 1.5, r"retention 1.5: expected a number in \(0, 1\]"),
        ("retention", math.nan, r"retention nan: expected a number in \(0, 1\]"),
        ("alpha", -0.1, "--alpha -0.1: expected 0 to 1"),
        ("alpha", math.nan, "--alpha nan: expected 0 to 1"),
        ("merge_ratio", 1.1, "--merge-ratio 1.1: expected 0 to 1"),
        ("window", 0, "--window 0: expected 1 to 64"),
        ("window", 65, "--window 65: expected 1 to 64"),
        ("expert_factor", 0.0, r"--expert-factor 0.0: expected a number in \(0, 1\]"),
        ("expert_factor", math.nan, r"--expert-factor nan: expected a number in \(0, 1\]"),
    ],
)
def test_settings_out_of_range(name: str, value: float, message: str) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InvalidRequest, match=message):
        resolve(**options)
