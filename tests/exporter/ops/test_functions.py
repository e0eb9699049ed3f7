# SPDX-License-Identifier: Apache-2.0
"""The function bodies on stock onnxruntime against the NumPy references."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from fastmmoe.exporter.ops import OPS, SPARSE_MOE, TOKEN_PRUNE, sparse_moe_reference, token_prune_reference
from fastmmoe.exporter.ops.functions import OPSET, function_for
from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.types import Array

Run = Callable[..., list[Array]]

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
# Of the output's greatest value: float32 arithmetic, then rounding to the output's type.
TOLERANCE = {np.dtype(np.float32): 1e-5, FLOAT16: 1e-3, BFLOAT16: 8e-3}
MERGES = ["mlerp", "mean"]


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    wide = expected.astype(np.float32)
    scale = np.abs(wide[np.isfinite(wide)]).max(initial=1e-30)
    np.testing.assert_allclose(actual.astype(np.float32), wide, rtol=0, atol=TOLERANCE[expected.dtype] * scale)


# FmmSparseMoE


def moe_attributes(**changes: Any) -> dict[str, Any]:
    return {
        "top_k": 4,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": 0,
        "routed_scaling_factor": 1.0,
        "reduction_weights": "preserve_sum",
        "activation": "swiglu",
        "swiglu_limit": 1.0,
        "expert_bias": 0,
        "weight_format": "float",
        "group_size": 0,
        "zero_points": 0,
        **changes,
    }


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


def check_moe(run_function: Run, attributes: dict[str, Any], inputs: list[Array]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = sparse_moe_reference(*inputs, **attributes)
    (output,) = run_function(SPARSE_MOE, attributes, inputs)
    assert_close(output, expected)
    return output


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (12, 5)])
@pytest.mark.parametrize("topk_method", ["greedy", "group_limited_greedy", "noaux_tc"])
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
def test_every_variant(run_function: Run, scoring_func: str, topk_method: str, groups: tuple[int, int]) -> None:
    others = itertools.product((0, 1), ("preserve_sum", "none"), ("swiglu", "swiglu_oai"), (0, 1))
    for norm_topk_prob, reduction_weights, activation, expert_bias in others:
        attributes = moe_attributes(
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
        check_moe(run_function, attributes, moe_inputs(attributes))


@pytest.mark.parametrize("weights", [np.float32, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("states", [np.float32, FLOAT16, BFLOAT16], ids=str)
def test_sixteen_bit_states_and_weights(run_function: Run, states: npt.DTypeLike, weights: npt.DTypeLike) -> None:
    for expert_bias in (0, 1):
        attributes = moe_attributes(expert_bias=expert_bias)
        check_moe(run_function, attributes, moe_inputs(attributes, states=states, weights=weights))


@pytest.mark.parametrize("visual_top_k", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("T", "visual"), [(1, range(0)), (1, range(1)), (7, range(0)), (7, range(7)), (7, range(6, 7))]
)
def test_sizes(run_function: Run, T: int, visual: range, visual_top_k: int) -> None:
    for changes in ({}, {"norm_topk_prob": 1}, {"scoring_func": "topk_softmax"}):
        attributes = moe_attributes(**changes)
        check_moe(run_function, attributes, moe_inputs(attributes, T=T, visual=visual, visual_top_k=visual_top_k))


def test_one_expert_per_token(run_function: Run) -> None:
    for norm_topk_prob, reduction_weights in itertools.product((0, 1), ("preserve_sum", "none")):
        attributes = moe_attributes(top_k=1, norm_topk_prob=norm_topk_prob, reduction_weights=reduction_weights)
        check_moe(run_function, attributes, moe_inputs(attributes, visual_top_k=1))


def test_one_expert_takes_everything(run_function: Run) -> None:
    attributes = moe_attributes(top_k=1)
    inputs = moe_inputs(attributes, visual_top_k=1)
    inputs[1][:, 5] = 50
    check_moe(run_function, attributes, inputs)


@pytest.mark.parametrize("E", [10, 33, 64, 72, 128])
@pytest.mark.parametrize("topk_method", ["greedy", "group_limited_greedy", "noaux_tc"])
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
def test_ties_go_to_the_smaller_expert(run_function: Run, scoring_func: str, topk_method: str, E: int) -> None:
    n_group = 3 if E == 33 else 2
    attributes = moe_attributes(scoring_func=scoring_func, topk_method=topk_method, n_group=n_group)
    inputs = moe_inputs(attributes, E=E)
    random = np.random.default_rng(E)
    inputs[4] = random.integers(0, 2, E).astype(np.float32) / 4
    inputs[1] = random.integers(-2, 3, inputs[1].shape).astype(np.float32)
    inputs[1][0] = 0.3
    check_moe(run_function, attributes, inputs)


def test_experts_with_very_small_sigmoid_scores_keep_their_order(run_function: Run) -> None:
    attributes = moe_attributes(scoring_func="sigmoid", norm_topk_prob=1)
    inputs = moe_inputs(attributes)
    inputs[1] -= 30
    check_moe(run_function, attributes, inputs)


def test_an_expert_of_weight_zero_is_not_run(run_function: Run) -> None:
    """One group of three experts for four choices: the fourth has the masked score 0, and NaN weights."""
    attributes = moe_attributes(topk_method="group_limited_greedy", n_group=4, topk_group=1)
    inputs = moe_inputs(attributes)
    inputs[1][:, :3] += 20
    inputs[5][3:] = np.nan
    assert np.isfinite(check_moe(run_function, attributes, inputs)).all()


def test_experts_that_visual_tokens_do_not_use_are_not_run(run_function: Run) -> None:
    for scoring_func in ("softmax", "topk_softmax"):
        attributes = moe_attributes(scoring_func=scoring_func)
        inputs = moe_inputs(attributes, visual=range(21))
        inputs[1] = np.tile(np.arange(12, 0, -1, dtype=np.float32) * 10, (21, 1))
        inputs[6][2:] = np.nan
        assert np.isfinite(check_moe(run_function, attributes, inputs)).all()


def test_no_expert_in_use_gives_zero(run_function: Run) -> None:
    attributes = moe_attributes(routed_scaling_factor=0.0)
    assert not check_moe(run_function, attributes, moe_inputs(attributes)).any()


def test_nan_stays_in_its_row(run_function: Run) -> None:
    for position in (0, 1):
        attributes = moe_attributes()
        inputs = moe_inputs(attributes)
        clean = sparse_moe_reference(*inputs, **attributes)
        inputs[position][3] = np.nan
        (output,) = run_function(SPARSE_MOE, attributes, inputs)
        assert np.isnan(output[3]).all()
        assert_close(np.delete(output, 3, axis=0), np.delete(clean, 3, axis=0))


# FmmTokenPrune


def prune_inputs(
    index: list[int], K: int, M: int, *, T: int, seed: int = 0, states: npt.DTypeLike = np.float32
) -> list[Array]:
    """Random inputs, H = 8 and E = 6."""
    random = np.random.default_rng(seed)
    V = len(index)
    hidden, residual = random.standard_normal((2, T, 8)).astype(states)
    return [
        hidden,
        residual,
        random.random((V, 6)).astype(np.float32),
        random.random(V).astype(np.float32),
        np.array(index, np.int32),
        np.array([0, V], np.int32),
        np.zeros(K, np.int8),
        np.array([0, K], np.int32),
        np.zeros(M, np.int8),
        np.array([0, M], np.int32),
        np.array([0.4], np.float32),
    ]


def check_prune(run_function: Run, attributes: dict[str, Any], inputs: list[Array] | tuple[Array, ...]) -> list[Array]:
    with np.errstate(invalid="ignore"):
        expected = token_prune_reference(*inputs, **attributes)
    outputs = run_function(TOKEN_PRUNE, attributes, inputs)
    for output, reference in zip(outputs[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(output, reference)
        assert output.dtype == np.int32
    for output, reference in zip(outputs[:2], expected[:2], strict=True):
        assert_close(output, reference)
    return outputs


@pytest.mark.parametrize("states", [np.float32, FLOAT16, BFLOAT16], ids=str)
def test_golden_pruning_cases(run_function: Run, prune_cases: list[Any], states: npt.DTypeLike) -> None:
    for case, inputs, _ in prune_cases:
        attributes = {"window": case["window"], "merge": case["merge"]}
        converted = [*(x.astype(states) for x in inputs[:2]), *inputs[2:]]
        hidden, _, kept_index, visual_index = check_prune(run_function, attributes, converted)
        # rows that are not merged are copies, bit by bit
        windows_merged = len(inputs[8])
        same = (hidden == converted[0][kept_index]).all(axis=1)
        assert same.sum() >= len(kept_index) - windows_merged
        assert np.delete(same, visual_index).all()


def layouts() -> Iterator[tuple[list[int], int, int]]:
    """Random rows of visual tokens in T rows, with how many to keep."""
    random = np.random.default_rng(7)
    for T in (2, 5, 9, 24, 50):
        for density in (0.4, 0.9):
            index = np.nonzero(random.random(T) < density)[0].tolist() or [T - 1]
            yield index, T, int(random.integers(0, len(index)))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_layouts_with_gaps(run_function: Run, window: int, merge: str) -> None:
    for index, T, K in layouts():
        for M in {0, min(K, merge_capacity(len(index), K, window))}:
            check_prune(run_function, {"window": window, "merge": merge}, prune_inputs(index, K, M, T=T, seed=T))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("index", "K", "T"),
    [([], 0, 1), ([], 0, 6), ([0], 0, 1), ([0], 1, 1), ([2], 0, 4), (list(range(9)), 4, 9), (list(range(9)), 0, 9)],
    ids=["decode", "no image", "one row dropped", "one row kept", "last visual dropped", "all visual", "all dropped"],
)
def test_extreme_sizes(run_function: Run, index: list[int], K: int, T: int, merge: str) -> None:
    check_prune(run_function, {"window": 3, "merge": merge}, prune_inputs(index, K, 0, T=T))


@pytest.mark.parametrize("merge", MERGES)
def test_keeping_all_is_the_identity_bit_by_bit(run_function: Run, merge: str) -> None:
    inputs = prune_inputs([1, 2, 3, 5, 6], 5, 0, T=8)
    inputs[0][2, :3] = [np.nan, -np.inf, -0.0]
    inputs[2][1] = np.nan
    hidden, residual, kept_index, visual_index = run_function(TOKEN_PRUNE, {"window": 2, "merge": merge}, inputs)
    assert hidden.tobytes() == inputs[0].tobytes()
    assert residual.tobytes() == inputs[1].tobytes()
    np.testing.assert_array_equal(kept_index, np.arange(8))
    np.testing.assert_array_equal(visual_index, inputs[4])


def test_ties_go_to_the_smaller_window_and_token(run_function: Run) -> None:
    inputs = prune_inputs(list(range(1, 14)), 6, 2, T=15)
    inputs[2][:] = 0.25
    inputs[3][:] = 0.5
    _, _, kept_index, _ = check_prune(run_function, {"window": 3, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 4, 7, 8, 9, 10, 14])


def test_tokens_with_values_that_are_not_finite_go_first(run_function: Run) -> None:
    inputs = prune_inputs(list(range(8)), 5, 0, T=8)
    inputs[3][:] = [-1, -2, 3, 4, 5, 6, np.nan, np.inf]
    inputs[2][3, 2], inputs[2][4, 0], inputs[2][5, 5] = np.nan, np.inf, -np.inf
    _, _, kept_index, _ = check_prune(run_function, {"window": 2, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 6, 7])
    # only cleaned ones are left to fill up with: the smaller index first
    inputs[6], inputs[7] = np.zeros(7, np.int8), np.array([0, 7], np.int32)
    _, _, kept_index, _ = check_prune(run_function, {"window": 2, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 3, 4, 6, 7])


def test_cleaned_windows_are_not_redundant(run_function: Run) -> None:
    """Nine cleaned tokens and a window of three alike: it is merged first, then the first of the windows tied at 0."""
    inputs = prune_inputs(list(range(2, 14)), 8, 2, T=14)
    inputs[2][:9], inputs[2][9:] = np.nan, 0.5
    inputs[10][:] = 1
    _, _, kept_index, _ = check_prune(run_function, {"window": 3, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
    inputs[2][:] = np.nan
    _, _, kept_index, _ = check_prune(run_function, {"window": 3, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 5, 8, 9, 10, 11, 12, 13])


def test_a_window_of_zeros_merges_to_zeros(run_function: Run) -> None:
    inputs = prune_inputs(list(range(6)), 4, 1, T=6)
    inputs[0][:3] = 0
    inputs[2][:] = np.eye(6, dtype=np.float32)
    inputs[2][:3], inputs[3][:3] = 0.5, 0.0
    hidden, *_ = check_prune(run_function, {"window": 3, "merge": "mlerp"}, inputs)
    assert not hidden[0].any()


@pytest.mark.parametrize("window", [1, 2, 3])
def test_impossible_counts_fail_where_the_reference_refuses_them(run_function: Run, window: int) -> None:
    attributes: dict[str, Any] = {"window": window, "merge": "mlerp"}
    refused = 0
    for V, K, M in itertools.product((1, 2, 6, 9), range(11), range(5)):
        inputs = prune_inputs(list(range(V)), K, M, T=V)
        if V < K or (V > K and min(K, merge_capacity(V, K, window)) < M):
            refused += 1
            with pytest.raises(ValueError, match="slots"):
                token_prune_reference(*inputs, **attributes)
            with pytest.raises((Fail, InvalidArgument), match=r"TopK.*slots_fit"):
                run_function(TOKEN_PRUNE, attributes, inputs)
        else:
            check_prune(run_function, attributes, inputs)
    assert refused > 100


# The bodies themselves


def variants() -> Iterator[ir.Function]:
    yield from (function_for(TOKEN_PRUNE, {"window": 3, "merge": merge}) for merge in MERGES)
    for method, bias in (("greedy", 0), ("noaux_tc", 1)):
        yield function_for(SPARSE_MOE, moe_attributes(topk_method=method, n_group=4, topk_group=2, expert_bias=bias))


def test_bodies_hold_standard_operators_and_distinct_names() -> None:
    for function in variants():
        assert function.opset_imports == {"": OPSET}
        nodes = list(ir.traversal.RecursiveGraphIterator(function))
        assert {node.domain for node in nodes} == {""}
        values = [value.name for node in nodes for value in node.outputs]
        assert len(set(values)) == len(values)
        names = [node.name for node in nodes]
        assert len(set(names)) == len(names)


def test_bodies_are_deterministic() -> None:
    for first, second in zip(variants(), variants(), strict=True):
        assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()


def test_only_one_experts_weights_are_converted() -> None:
    function = function_for(SPARSE_MOE, moe_attributes(expert_bias=1))
    for value in function.inputs[5:]:
        assert [node.op_type for node in value.consumers()] == ["Gather"], value.name


def test_group_operators_only_where_groups_limit_the_choice() -> None:
    for method, topk_group, count in (
        ("greedy", 2, 1),
        ("noaux_tc", 4, 1),
        ("noaux_tc", 2, 3),
        ("group_limited_greedy", 2, 2),
    ):
        function = function_for(SPARSE_MOE, moe_attributes(topk_method=method, n_group=4, topk_group=topk_group))
        assert sum(node.op_type == "TopK" for node in ir.traversal.RecursiveGraphIterator(function)) == count


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_functions_declare_what_the_contract_declares(spec: Any) -> None:
    attributes = moe_attributes(expert_bias=1) if spec is SPARSE_MOE else {"window": 3, "merge": "mean"}
    function = function_for(spec, attributes)
    assert [value.name for value in function.inputs] == [tensor.name for tensor in spec.inputs_for(attributes)]
    assert [value.name for value in function.outputs] == [tensor.name for tensor in spec.outputs]
    assert list(function.attributes) == [attribute.name for attribute in spec.attributes]


def test_integer_weights_are_refused() -> None:
    attributes = moe_attributes() | {"weight_format": "int4", "group_size": 32}
    with pytest.raises(ValueError, match="weight_format int4 has no function body, expected float"):
        function_for(SPARSE_MOE, attributes)


def test_attributes_outside_the_contract_are_refused() -> None:
    with pytest.raises(ValueError, match="merge is 'median', supported are"):
        function_for(TOKEN_PRUNE, {"window": 3, "merge": "median"})
