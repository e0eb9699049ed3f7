# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of FmmSparseMoE against recorded outputs of the official gate and cases computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops.sparse_moe.reference import route_reference
from fastmmoe.runtime.types import Array
from tests.support.operators import (
    moe_attributes,
)

FLOAT32_TOLERANCE = 1e-5


GATE_CASES = 32


# The official torch.topk leaves the order of tied scores open; these have ties among the excluded groups' zeros.
GATE_CASES_WITH_TIES = {24, 25, 26, 27}


def route(logits: Array, visual: list[int], visual_top_k: int, **changes: Any) -> tuple[Array, Array]:
    is_visual = np.isin(np.arange(len(logits)), visual)
    bias = changes.pop("bias", np.zeros(logits.shape[1], np.float32))
    return route_reference(logits, is_visual, visual_top_k, bias, moe_attributes(**{"top_k": 4} | changes))


def by_expert(selected: Array, weights: Array) -> tuple[Array, Array]:
    order = np.argsort(selected, axis=1)
    return np.take_along_axis(selected, order, axis=1), np.take_along_axis(weights, order, axis=1)


def excluded_experts(logits: Array, bias: Array, n_group: int, topk_group: int) -> Array:
    """[T, E] bool: experts outside the groups that noaux_tc keeps, for softmax scores."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    choice = (p / p.sum(axis=1, keepdims=True) + bias).reshape(len(logits), n_group, -1)
    group_scores = np.sort(choice, axis=2)[:, :, -2:].sum(axis=2)
    kth_best = np.sort(group_scores, axis=1)[:, -topk_group][:, None]
    return np.repeat(group_scores < kth_best, choice.shape[2], axis=1)


@pytest.mark.parametrize("number", range(GATE_CASES))
def test_routing_equals_the_official_gate(golden: Path, number: int) -> None:
    case = json.loads((golden / "dsvl2-gates" / "gates.json").read_text())[number]
    with np.load(golden / "dsvl2-gates" / "gates.npz") as arrays:
        logits = arrays["hidden"].reshape(-1, arrays["hidden"].shape[-1]) @ arrays["weight"].T
        bias, official = arrays["bias"], (arrays[f"idx_{number}"], arrays[f"weight_{number}"])
    changes = {name: case[name] for name in ("top_k", "scoring_func", "topk_method", "n_group", "topk_group")}
    changes |= {
        "norm_topk_prob": int(case["norm_topk_prob"]),
        "routed_scaling_factor": float(case["routed_scaling_factor"]),
    }
    selected, weights = by_expert(*route(logits, [], 1, bias=bias, **changes))
    official_selected, official_weights = by_expert(*official)

    same = (selected == official_selected).all(axis=1)
    np.testing.assert_allclose(weights[same], official_weights[same], rtol=0, atol=FLOAT32_TOLERANCE)
    assert (number in GATE_CASES_WITH_TIES) == (not same.all())
    assert same.mean() > 0.5
    for token in np.nonzero(~same)[0]:
        differing = np.setxor1d(selected[token], official_selected[token])
        excluded = excluded_experts(logits, bias, case["n_group"], case["topk_group"])[token]
        assert excluded[differing].all(), f"token {token}: experts {differing} differ and are not all tied at 0"


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
@pytest.mark.parametrize("topk_method", ["greedy", "group_limited_greedy", "noaux_tc"])
@pytest.mark.parametrize("norm_topk_prob", [0, 1])
def test_visual_tokens_use_the_best_of_the_models_own_choice(
    scoring_func: str, topk_method: str, norm_topk_prob: int
) -> None:
    random = np.random.default_rng(1)
    logits, bias = random.standard_normal((9, 12)).astype(np.float32), random.random(12).astype(np.float32)
    changes = {"scoring_func": scoring_func, "topk_method": topk_method, "norm_topk_prob": norm_topk_prob}
    changes |= {"bias": bias, "n_group": 4, "topk_group": 2}
    model_selected, model_weights = route(logits, [], 2, **changes)
    selected, weights = route(logits, [0, 3, 8], 2, **changes)
    visual = np.isin(np.arange(9), [0, 3, 8])
    np.testing.assert_array_equal(selected, model_selected)
    np.testing.assert_array_equal(weights[~visual], model_weights[~visual])
    assert (weights[visual][:, :2] != 0).all()
    assert (weights[visual][:, 2:] == 0).all()


def test_preserve_sum_keeps_the_sum_and_the_ratios() -> None:
    logits = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)
    for factor in (1.0, 2.5):
        _, full = route(logits, [], 4, routed_scaling_factor=factor)
        _, kept = route(logits, list(range(5)), 2, routed_scaling_factor=factor)
        np.testing.assert_allclose(kept.sum(axis=1), full.sum(axis=1), rtol=FLOAT32_TOLERANCE)
        np.testing.assert_allclose(kept[:, 0] / kept[:, 1], full[:, 0] / full[:, 1], rtol=FLOAT32_TOLERANCE)
        _, left = route(logits, list(range(5)), 2, routed_scaling_factor=factor, reduction_weights="none")
        np.testing.assert_array_equal(left[:, :2], full[:, :2])


def test_all_experts_kept_means_unchanged_weights() -> None:
    logits = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_array_equal(route(logits, list(range(5)), 4)[1], route(logits, [], 4)[1])


@pytest.mark.parametrize("reduction_weights", ["preserve_sum", "none"])
def test_renormalising_over_one_expert_gives_the_scaling_factor(reduction_weights: str) -> None:
    logits = np.random.default_rng(4).standard_normal((5, 8)).astype(np.float32)
    changes = {"norm_topk_prob": 1, "routed_scaling_factor": 2.0, "reduction_weights": reduction_weights}
    _, weights = route(logits, list(range(5)), 1, **changes)
    np.testing.assert_allclose(weights[:, 0], 2.0, rtol=FLOAT32_TOLERANCE)


def test_norm_topk_prob_is_ignored_when_the_model_has_one_expert() -> None:
    logits = np.log(np.array([[1, 3, 4]], np.float32))
    _, weights = route(logits, [0], 1, top_k=1, norm_topk_prob=1)
    np.testing.assert_allclose(weights, [[0.5]], rtol=FLOAT32_TOLERANCE)


def test_topk_softmax_runs_over_the_experts_kept() -> None:
    logits = np.log(np.array([[1, 2, 3, 4], [1, 2, 3, 4]], np.float32))
    selected, weights = route(logits, [1], 2, scoring_func="topk_softmax", top_k=3)
    np.testing.assert_array_equal(selected, [[3, 2, 1], [3, 2, 1]])
    expected = [[4 / 9, 3 / 9, 2 / 9], [4 / 7, 3 / 7, 0]]
    np.testing.assert_allclose(weights, expected, rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
def test_tied_experts_are_taken_by_smaller_id(scoring_func: str) -> None:
    logits = np.array([[0, 1, 1, 1, 0, 1], [2, 2, 2, 2, 2, 2]], np.float32)
    selected, weights = route(logits, [1], 2, scoring_func=scoring_func, top_k=3)
    np.testing.assert_array_equal(selected, [[1, 2, 3], [0, 1, 2]])
    assert weights[1, 0] == weights[1, 1]
