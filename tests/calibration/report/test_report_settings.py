# SPDX-License-Identifier: Apache-2.0
"""Settings of the comparison, their schedules and their counted cost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmmoe.calibration.report.settings import (
    FASTMMOE,
    FULL,
    PRUNING,
    REDUCTION,
    VARIANTS,
    Planner,
    Prompt,
    Setting,
    curve_settings,
)
from fastmmoe.runtime.cost.budget import STEPS
from fastmmoe.runtime.cost.flops import compare_prefill
from fastmmoe.runtime.errors import InvalidRequest


def test_the_halves_make_up_the_whole(planner: Planner) -> None:
    whole = planner.schedule(Setting(FASTMMOE, 0.5), 221)
    pruning = planner.schedule(Setting(PRUNING, 0.5), 221)
    reduction = planner.schedule(Setting(REDUCTION), 221)
    full = planner.schedule(Setting(FULL), 221)
    assert pruning.keep == whole.keep != full.keep
    assert pruning.merge == whole.merge
    assert pruning.visual_top_k == full.visual_top_k == (4,) * 7
    assert reduction.keep == full.keep
    assert reduction.visual_top_k == whole.visual_top_k == (4, 2, 2, 1, 2, 2, 3)


def test_curves_have_every_variant_once_a_retention() -> None:
    settings = curve_settings((0.5, 0.25))
    assert len(set(settings)) == len(settings) == 2 + 2 * (len(VARIANTS) - 2)
    assert {s.variant for s in settings} == set(VARIANTS)
    assert {s.retention for s in settings if s.variant in (FULL, REDUCTION)} == {1.0}


def test_cost_is_the_mean_over_questions(manifest: Any) -> None:
    short, long = Prompt(230, 221, 2), Prompt(300, 221, 2)
    cost = Planner(manifest, [short, long, long]).cost(Setting(FASTMMOE, 0.5))
    info, policy = manifest.language_model, manifest.policy
    one, two = (
        compare_prefill(info, policy, tokens=p.tokens, visual_tokens=221, method="fastmmoe", retention=0.5)
        for p in (short, long)
    )
    spent = one.prefill.total + 2 * two.prefill.total
    assert cost.gflops == pytest.approx(spent / 3e9, rel=1e-12)
    assert cost.reduction == pytest.approx(1 - spent / (one.unmodified.total + 2 * two.unmodified.total), rel=1e-12)
    assert 0 < cost.reduction_with_vision < cost.reduction
    assert cost.kept == (221, *two.schedule.kept_visual_tokens)


@pytest.mark.parametrize("variant", [FASTMMOE, PRUNING, "random", "fastv", "sparsevlm"])
def test_the_mildest_setting_that_saves_enough(planner: Planner, variant: str) -> None:
    found = planner.at_reduction(variant, 0.4)
    milder = Setting(variant, round(found.retention * STEPS + 1) / STEPS)
    assert found.variant == variant
    assert planner.cost(found).reduction >= 0.4 > planner.cost(milder).reduction


def test_more_than_can_be_saved_is_refused(planner: Planner) -> None:
    with pytest.raises(InvalidRequest, match=r"^no retention of fastv saves 99\.00% of the prefill: 0\.0001 saves \d+"):
        planner.at_reduction("fastv", 0.99)


def test_a_bundle_of_one_method_is_refused(manifest: Any) -> None:
    manifest.policy = msgspec.structs.replace(manifest.policy, method="fastmmoe")
    with pytest.raises(InvalidRequest, match=r"holds method fastmmoe: .* export with --method all$"):
        Planner(manifest, [Prompt(230, 221, 2)])
