# SPDX-License-Identifier: Apache-2.0
"""The export's pruning settings: defaults of other depths, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from fastmmoe.exporter.pruning.settings import (
    FAMILY_ROWS,
    Layers,
    PolicyModel,
    PolicyOptions,
    reduced_top_k,
    resolve_policy,
    scaled_layers,
)
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import Method, Policy

FOUND_FOR = PolicyModel(
    family="deepseek_vl2", layers=6, moe_layers=(1, 2, 3, 4, 5), top_k=6, checkpoint_identity="0" * 64
)


def resolve(layers: int = 6, prunable: tuple[int, ...] = (1, 3, 5), **options: Any) -> Policy:
    every = Layers(layers, moe=tuple(range(1, layers)), full_attention=prunable, top_k=6)
    return resolve_policy(PolicyOptions(**options), family="deepseek_vl2", layers=every)


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
    row = FAMILY_ROWS[family]
    assert scaled_layers(row.prune_layers, row.layers, layers, tuple(prunable)) == expected


def test_defaults_of_a_family() -> None:
    assert resolve(27, tuple(range(1, 27))) == Policy(
        method="fastmmoe",
        prune_layers={"fastmmoe": (2, 5, 8)},
        stage_exponents=(1 / 3, 2 / 3, 1.0),
        retention=0.5,
        alpha=0.3,
        merge_ratio=0.05,
        window=3,
        merge="mlerp",
        visual_top_k=(6,) + (3,) * 25,
        reduction_weights="preserve_sum",
        sparsevlm_positions="compact",
    )


def test_given_settings_are_taken() -> None:
    policy = resolve(prune_layers=(3, 5), retention=0.25, alpha=0.0, merge_ratio=1.0, window=1, expert_factor=1.0)
    assert (policy.prune_layers, policy.retention, policy.alpha) == ({"fastmmoe": (3, 5)}, 0.25, 0.0)
    assert (policy.merge_ratio, policy.window, policy.visual_top_k) == (1.0, 1, (6,) * 5)
    assert policy.stage_exponents == (0.5, 1.0)


@pytest.mark.parametrize(
    ("k", "factor", "expected"),
    [(6, 0.5, 3), (8, 0.5, 4), (4, 0.5, 2), (3, 0.5, 2), (1, 0.5, 1), (8, 0.01, 1), (8, 1.0, 8), (6, 0.75, 5)],
)
def test_reduced_top_k(k: int, factor: float, expected: int) -> None:
    assert reduced_top_k(k, factor) == expected


def test_settings_by_stage_and_by_layer() -> None:
    given: dict[str, Any] = {"prune_layers": (1, 5), "stage_exponents": (0.2, 1.0), "visual_top_k": (1, 2, 3, 4, 6)}
    for method in ("fastmmoe", "random", "all"):
        policy = resolve(method=method, found_for=FOUND_FOR, **given)
        assert (policy.stage_exponents, policy.visual_top_k) == ((0.2, 1.0), (1, 2, 3, 4, 6))
    assert policy.prune_layers["fastmmoe"] == policy.prune_layers["random"] == (1, 5)
    assert policy.prune_layers["fastv"] == (2,)


@pytest.mark.parametrize(("method", "stages"), [("all", 3), ("random", 3), ("fastv", 0), ("sparsevlm", 0), ("none", 0)])
def test_exponents_belong_to_fastmmoe_and_random(method: Method, stages: int) -> None:
    assert resolve(method=method).stage_exponents == tuple((s + 1) / 3 for s in range(stages))


@pytest.mark.parametrize("method", ["none", "fastv", "sparsevlm"])
def test_methods_without_such_stages(method: Method) -> None:
    message = f"--method {method}: --policy and stage_exponents are for the stages of fastmmoe"
    with pytest.raises(InvalidRequest, match=message):
        resolve(method=method, stage_exponents=(1.0,))


@pytest.mark.parametrize(
    "exponents", [(), (1.0,), (0.5, 0.5, 1.0), (0.0, 0.5, 1.0), (0.6, 0.5, 1.0), (0.2, 0.5, 0.9), (0.1, math.nan, 1.0)]
)
def test_impossible_exponents(exponents: tuple[float, ...]) -> None:
    shown = ",".join(map(str, exponents))
    with pytest.raises(InvalidRequest) as caught:
        resolve(stage_exponents=exponents)
    expected = "expected 3 (one for each prune layer), ascending, above 0, the last 1"
    assert str(caught.value) == f"stage_exponents {shown}: {expected}"


@pytest.mark.parametrize("visual_top_k", [(), (3,), (3,) * 6, (3, 3, 3, 3, 0), (7, 3, 3, 3, 3)])
def test_impossible_experts(visual_top_k: tuple[int, ...]) -> None:
    shown = ",".join(map(str, visual_top_k))
    with pytest.raises(InvalidRequest) as caught:
        resolve(visual_top_k=visual_top_k)
    expected = "expected 5 (one for each MoE layer) of 1 to 6, the model's experts per token"
    assert str(caught.value) == f"visual_top_k {shown}: {expected}"


def test_experts_said_twice() -> None:
    with pytest.raises(InvalidRequest, match="give expert_factor or visual_top_k, not both"):
        resolve(expert_factor=0.5, visual_top_k=(3,) * 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "internvl3_5"}, "family internvl3_5, this one has deepseek_vl2"),
        ({"layers": 7}, "layers 7, this one has 6"),
        ({"moe_layers": (2, 3)}, "moe_layers 2,3, this one has 1,2,3,4,5"),
        ({"top_k": 8}, "top_k 8, this one has 6"),
    ],
)
def test_settings_of_a_model_of_another_shape(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(found_for=msgspec.structs.replace(FOUND_FOR, **change))
    start = "--policy: its settings were found for a model with "
    assert str(caught.value) == f"{start}{message}: find settings for this model"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2.5}, "Expected `int`, got `float` - at `$.window`"),
        ({"window": True}, "Expected `int`, got `bool` - at `$.window`"),
        ({"alpha": "0.5"}, "Expected `float | null`, got `str` - at `$.alpha`"),
        ({"prune_layers": (1.5,)}, "Expected `int`, got `float` - at `$.prune_layers[0]`"),
        ({"prune_layers": 3}, "Expected `array | null`, got `int` - at `$.prune_layers`"),
        ({"visual_top_k": (1.5, 1, 1, 1, 1)}, "Expected `int`, got `float` - at `$.visual_top_k[0]`"),
        ({"merge": "max"}, "Invalid enum value 'max' - at `$.merge`"),
        ({"reduction_weights": ["none"]}, "Expected `str`, got `array` - at `$.reduction_weights`"),
    ],
)
def test_options_of_another_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(**options)
    assert str(caught.value) == f"pruning options: {message}"


def test_method_none_has_no_stages() -> None:
    policy = resolve(method="none", layers=2)
    assert (policy.method, policy.prune_layers, policy.retention) == ("none", {}, 1.0)


def test_a_shallow_model_needs_explicit_layers() -> None:
    with pytest.raises(InvalidRequest, match="a model of 3 layers has no default prune layers of fastmmoe: give"):
        resolve(layers=3, prunable=(1,))
    assert resolve(layers=3, prunable=(1,), prune_layers=(1,)).prune_layers == {"fastmmoe": (1,)}


@pytest.mark.parametrize(
    ("layers", "full", "fastv", "sparsevlm"),
    [
        # floor(l * 27 / 32 + 0.5) of layers 2, 6, 15
        (27, range(27), (2,), (2, 5, 13)),
        (48, range(48), (2,), (3, 9, 23)),
        (6, range(6), (2,), (0, 1, 3)),
        # gpt-oss: every other layer slides; the attention of layer 1 decides before layer 2
        (24, range(1, 24, 2), (2,), (3, 5, 11)),
        (6, (2, 4), (3,), (2, 4)),
    ],
)
def test_layers_of_the_baselines(layers: int, full: Any, fastv: tuple[int, ...], sparsevlm: tuple[int, ...]) -> None:
    found = resolve(layers, tuple(full), method="all").prune_layers
    assert (found["fastv"], found["sparsevlm"]) == (fastv, sparsevlm)
    assert found["random"] == found["fastmmoe"] == resolve(layers, tuple(full)).prune_layers["fastmmoe"]
    for method in ("random", "fastv", "sparsevlm"):
        assert resolve(layers, tuple(full), method=method).prune_layers == {method: found[method]}


def test_given_layers_are_those_of_the_method() -> None:
    assert resolve(method="fastv", prune_layers=(4,)).prune_layers == {"fastv": (4,)}
    assert resolve(method="sparsevlm", prune_layers=(1, 3)).prune_layers == {"sparsevlm": (1, 3)}
    found = resolve(method="all", prune_layers=(3, 5)).prune_layers
    assert found["fastmmoe"] == found["random"] == (3, 5)
    assert (found["fastv"], found["sparsevlm"]) == ((2,), (1, 3))


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("fastv", (2, 4), "--prune-layers 2,4: fastv prunes at most 1 times"),
        ("fastv", (3,), "--prune-layers 3: layer 3 has no full attention right before it; possible for fastv are 2,4"),
        ("fastv", (6,), "--prune-layers 6: the model has layers 0 to 5"),
        ("sparsevlm", (1, 3, 4, 5), "--prune-layers 1,3,4,5: sparsevlm prunes at most 3 times"),
        ("sparsevlm", (5,), "--prune-layers 5: layer 5 has no full attention or is the last; "),
        ("random", (2,), "--prune-layers 2: layer 2 has no MoE block with full attention; possible for random are 1,3"),
        ("none", (1,), "--prune-layers: --method none prunes nothing"),
        ("fastvv", None, "--method fastvv: expected one of none, fastmmoe, random, fastv, sparsevlm, all"),
    ],
)
def test_impossible_layers_of_a_method(method: str, given: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(method=method, prune_layers=given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--prune-layers is empty: give layers such as 2,5,8, or --method none"),
        ((3, 1), "--prune-layers 3,1: expected ascending layers without repetition"),
        ((1, 1), "--prune-layers 1,1: expected ascending layers without repetition"),
        ((-1, 3), "--prune-layers -1,3: the model has layers 0 to 5"),
        ((3, 6), "--prune-layers 3,6: the model has layers 0 to 5"),
        ((1, 2), "--prune-layers 1,2: layer 2 has no MoE block with full attention; possible for fastmmoe are 1,3,5"),
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
