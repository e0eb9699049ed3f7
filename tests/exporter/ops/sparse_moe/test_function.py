# SPDX-License-Identifier: Apache-2.0
"""The function body of FmmSparseMoE on stock onnxruntime against the NumPy reference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from fastmmoe.exporter.ops import SPARSE_MOE, sparse_moe_reference
from fastmmoe.exporter.ops.functions import function_for
from fastmmoe.runtime.types import Array
from tests.support.operator_bodies import run_body
from tests.support.operators import (
    BFLOAT16,
    FLOAT16,
    assert_close,
    moe_attributes,
)


def four_experts(**changes: Any) -> dict[str, Any]:
    """All attributes of FmmSparseMoE, four experts a token."""
    return moe_attributes(**{"top_k": 4, "swiglu_limit": 1.0} | changes)


def moe_inputs(
    attributes: dict[str, Any],
    *,
    T: int = 21,
    visual: range = range(4, 15),
    visual_top_k: int = 2,
    E: int = 12,
    states: npt.DTypeLike = np.float32,
    weights: npt.DTypeLike = np.float32,
) -> list[Array]:
    """Random inputs, H = 16 and I = 8."""
    random = np.random.default_rng(T + E)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    inputs = [
        normal(T, 16).astype(states),
        normal(T, E),
        np.array(visual, np.int32),
        np.array([visual_top_k], np.int32),
        normal(E),
        normal(E, 16, 16).astype(weights),
        normal(E, 16, 8).astype(weights),
    ]
    if attributes["expert_bias"]:
        inputs += [normal(E, 16).astype(states), normal(E, 16).astype(states)]
    return inputs


def check_moe(attributes: dict[str, Any], inputs: list[Array]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = sparse_moe_reference(*inputs, **attributes)
    (output,) = run_body(SPARSE_MOE, attributes, inputs)
    assert_close(output, expected)
    return output


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (12, 5)])
@pytest.mark.parametrize("topk_method", ["greedy", "group_limited_greedy", "noaux_tc"])
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
def test_every_variant(scoring_func: str, topk_method: str, groups: tuple[int, int]) -> None:
    others = itertools.product((0, 1), ("preserve_sum", "none"), ("swiglu", "swiglu_oai"), (0, 1))
    for norm_topk_prob, reduction_weights, activation, expert_bias in others:
        attributes = four_experts(
            scoring_func=scoring_func,
            topk_method=topk_method,
            n_group=groups[0],
            topk_group=groups[1],
            norm_topk_prob=norm_topk_prob,
            routed_scaling_factor=2.5 if expert_bias else 1.0,
            reduction_weights=reduction_weights,
            activation=activation,
            expert_bias=expert_bias,
        )
        check_moe(attributes, moe_inputs(attributes))


@pytest.mark.parametrize("weights", [np.float32, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("states", [np.float32, FLOAT16, BFLOAT16], ids=str)
def test_sixteen_bit_states_and_weights(states: npt.DTypeLike, weights: npt.DTypeLike) -> None:
    for expert_bias in (0, 1):
        attributes = four_experts(expert_bias=expert_bias)
        check_moe(attributes, moe_inputs(attributes, states=states, weights=weights))


@pytest.mark.parametrize("visual_top_k", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("T", "visual"), [(1, range(0)), (1, range(1)), (7, range(0)), (7, range(7)), (7, range(6, 7))]
)
def test_sizes(T: int, visual: range, visual_top_k: int) -> None:
    for changes in ({}, {"norm_topk_prob": 1}, {"scoring_func": "topk_softmax"}):
        attributes = four_experts(**changes)
        check_moe(attributes, moe_inputs(attributes, T=T, visual=visual, visual_top_k=visual_top_k))


def test_one_expert_per_token() -> None:
    for norm_topk_prob, reduction_weights in itertools.product((0, 1), ("preserve_sum", "none")):
        attributes = four_experts(top_k=1, norm_topk_prob=norm_topk_prob, reduction_weights=reduction_weights)
        check_moe(attributes, moe_inputs(attributes, visual_top_k=1))


def test_one_expert_takes_everything() -> None:
    attributes = four_experts(top_k=1)
    inputs = moe_inputs(attributes, visual_top_k=1)
    inputs[1][:, 5] = 50
    check_moe(attributes, inputs)


@pytest.mark.parametrize("E", [10, 33, 64, 72, 128])
@pytest.mark.parametrize("topk_method", ["greedy", "group_limited_greedy", "noaux_tc"])
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
def test_ties_go_to_the_smaller_expert(scoring_func: str, topk_method: str, E: int) -> None:
    n_group = 3 if E == 33 else 2
    attributes = four_experts(scoring_func=scoring_func, topk_method=topk_method, n_group=n_group)
    inputs = moe_inputs(attributes, E=E)
    random = np.random.default_rng(E)
    inputs[4] = random.integers(0, 2, E).astype(np.float32) / 4
    inputs[1] = random.integers(-2, 3, inputs[1].shape).astype(np.float32)
    inputs[1][0] = 0.3
    check_moe(attributes, inputs)


def test_experts_with_very_small_sigmoid_scores_keep_their_order() -> None:
    attributes = four_experts(scoring_func="sigmoid", norm_topk_prob=1)
    inputs = moe_inputs(attributes)
    inputs[1] -= 30
    check_moe(attributes, inputs)


def test_an_expert_of_weight_zero_is_not_run() -> None:
    """One group of three experts for four choices: the fourth has the masked score 0, and NaN weights."""
    attributes = four_experts(topk_method="group_limited_greedy", n_group=4, topk_group=1)
    inputs = moe_inputs(attributes)
    inputs[1][:, :3] += 20
    inputs[5][3:] = np.nan
    assert np.isfinite(check_moe(attributes, inputs)).all()


def test_experts_that_visual_tokens_do_not_use_are_not_run() -> None:
    for scoring_func in ("softmax", "topk_softmax"):
        attributes = four_experts(scoring_func=scoring_func)
        inputs = moe_inputs(attributes, visual=range(21))
        inputs[1] = np.tile(np.arange(12, 0, -1, dtype=np.float32) * 10, (21, 1))
        inputs[6][2:] = np.nan
        assert np.isfinite(check_moe(attributes, inputs)).all()


def test_no_expert_in_use_gives_zero() -> None:
    attributes = four_experts(routed_scaling_factor=0.0)
    assert not check_moe(attributes, moe_inputs(attributes)).any()


def test_nan_stays_in_its_row() -> None:
    for position in (0, 1):
        attributes = four_experts()
        inputs = moe_inputs(attributes)
        clean = sparse_moe_reference(*inputs, **attributes)
        inputs[position][3] = np.nan
        (output,) = run_body(SPARSE_MOE, attributes, inputs)
        assert np.isnan(output[3]).all()
        assert_close(np.delete(output, 3, axis=0), np.delete(clean, 3, axis=0))


def test_only_one_experts_weights_are_converted() -> None:
    function = function_for(SPARSE_MOE, four_experts(expert_bias=1))
    for value in function.inputs[5:]:
        assert [node.op_type for node in value.consumers()] == ["Gather"], value.name


def test_group_operators_only_where_groups_limit_the_choice() -> None:
    for method, topk_group, count in (
        ("greedy", 2, 1),
        ("noaux_tc", 4, 1),
        ("noaux_tc", 2, 3),
        ("group_limited_greedy", 2, 2),
    ):
        function = function_for(SPARSE_MOE, four_experts(topk_method=method, n_group=4, topk_group=topk_group))
        assert sum(node.op_type == "TopK" for node in ir.traversal.RecursiveGraphIterator(function)) == count
