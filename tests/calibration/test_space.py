# SPDX-License-Identifier: Apache-2.0
"""The search space holds the default schedule, and every point of it is a legal export."""

from __future__ import annotations

import optuna
import pytest

from fastmmoe.calibration.space import MOST_STAGES, Space
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy

SHAPES = {
    "demo": ("deepseek_vl2", Layers(8, tuple(range(1, 8)), tuple(range(8)), 4)),
    "tiny": ("deepseek_vl2", Layers(4, (1, 2, 3), tuple(range(4)), 2)),
    "deepseek": ("deepseek_vl2", Layers(27, tuple(range(1, 27)), tuple(range(27)), 6)),
    "internvl": ("internvl3_5", Layers(48, tuple(range(48)), tuple(range(48)), 8)),
    "gpt-oss": ("internvl3_5", Layers(24, tuple(range(24)), tuple(range(1, 24, 2)), 4)),
}


def make_space(shape: str) -> Space:
    family, layers = SHAPES[shape]
    return Space(layers, resolve_policy(PolicyOptions(), family=family, layers=layers))


@pytest.mark.parametrize("shape", SHAPES)
def test_default_schedule_is_a_point(shape: str) -> None:
    family, layers = SHAPES[shape]
    space = make_space(shape)
    params = space.default_params(0.31)
    assert params.keys() == space.distributions.keys()
    for name, distribution in space.distributions.items():
        assert distribution._contains(distribution.to_internal_repr(params[name])), name
    expected = resolve_policy(PolicyOptions(retention=0.31), family=family, layers=layers)
    assert resolve_policy(space.options(params), family=family, layers=layers) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_every_point_is_legal(shape: str) -> None:
    family, layers = SHAPES[shape]
    space = make_space(shape)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    stages = set()
    for _ in range(60):
        options = space.options(study.ask(space.distributions).params)
        policy = resolve_policy(options, family=family, layers=layers)
        stages.add(len(policy.prune_layers["fastmmoe"]))
        assert policy.retention < 1
    assert stages == set(range(1, min(MOST_STAGES, len(layers.prunable)) + 1))


def test_experts_are_grouped_in_deep_models() -> None:
    groups = make_space("internvl").expert_groups
    assert groups[0] == (0, 1)
    assert [layer for group in groups for layer in group] == list(range(48))
    assert len(groups) == 8
    assert {len(group) for group in groups[1:]} <= {6, 7}
    assert make_space("demo").expert_groups == tuple((layer,) for layer in range(1, 8))


def test_numbers_are_rounded_and_exponents_follow_the_shares() -> None:
    space = make_space("demo")
    params = space.default_params(0.5) | {"share_1": 0.2501, "share_2": 0.5, "share_3": 0.25, "retention": 0.123456}
    options = space.options(params)
    assert options.stage_exponents == pytest.approx((0.25, 0.75, 1))
    assert options.retention == 0.1235
