# SPDX-License-Identifier: Apache-2.0
"""The function body of FmmTokenPrune on stock onnxruntime against the NumPy reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from fastmmoe.exporter.ops import TOKEN_PRUNE, token_prune_reference
from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.types import Array
from tests.support.operator_bodies import run_body
from tests.support.operators import (
    BFLOAT16,
    FLOAT16,
    GOLDEN_PRUNE_CASES,
    MERGES,
    assert_close,
    golden_prune_case,
)


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


def check_prune(attributes: dict[str, Any], inputs: list[Array] | tuple[Array, ...]) -> list[Array]:
    with np.errstate(invalid="ignore"):
        expected = token_prune_reference(*inputs, **attributes)
    outputs = run_body(TOKEN_PRUNE, attributes, inputs)
    for output, reference in zip(outputs[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(output, reference)
        assert output.dtype == np.int32
    for output, reference in zip(outputs[:2], expected[:2], strict=True):
        assert_close(output, reference)
    return outputs


@pytest.mark.parametrize("states", [np.float32, FLOAT16, BFLOAT16], ids=str)
def test_golden_pruning_cases(golden: Path, states: npt.DTypeLike) -> None:
    for number in range(GOLDEN_PRUNE_CASES):
        case = golden_prune_case(golden, number)
        inputs, attributes = list(case.inputs.values()), case.attributes
        converted = [*(x.astype(states) for x in inputs[:2]), *inputs[2:]]
        hidden, _, kept_index, visual_index = check_prune(attributes, converted)
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
def test_layouts_with_gaps(window: int, merge: str) -> None:
    for index, T, K in layouts():
        for M in {0, min(K, merge_capacity(len(index), K, window))}:
            check_prune({"window": window, "merge": merge}, prune_inputs(index, K, M, T=T, seed=T))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("index", "K", "T"),
    [([], 0, 1), ([], 0, 6), ([0], 0, 1), ([0], 1, 1), ([2], 0, 4), (list(range(9)), 4, 9), (list(range(9)), 0, 9)],
    ids=["decode", "no image", "one row dropped", "one row kept", "last visual dropped", "all visual", "all dropped"],
)
def test_extreme_sizes(index: list[int], K: int, T: int, merge: str) -> None:
    check_prune({"window": 3, "merge": merge}, prune_inputs(index, K, 0, T=T))


@pytest.mark.parametrize("merge", MERGES)
def test_keeping_all_is_the_identity_bit_by_bit(merge: str) -> None:
    inputs = prune_inputs([1, 2, 3, 5, 6], 5, 0, T=8)
    inputs[0][2, :3] = [np.nan, -np.inf, -0.0]
    inputs[2][1] = np.nan
    hidden, residual, kept_index, visual_index = run_body(TOKEN_PRUNE, {"window": 2, "merge": merge}, inputs)
    assert hidden.tobytes() == inputs[0].tobytes()
    assert residual.tobytes() == inputs[1].tobytes()
    np.testing.assert_array_equal(kept_index, np.arange(8))
    np.testing.assert_array_equal(visual_index, inputs[4])


def test_ties_go_to_the_smaller_window_and_token() -> None:
    inputs = prune_inputs(list(range(1, 14)), 6, 2, T=15)
    inputs[2][:] = 0.25
    inputs[3][:] = 0.5
    _, _, kept_index, _ = check_prune({"window": 3, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 4, 7, 8, 9, 10, 14])


def test_tokens_with_values_that_are_not_finite_go_first() -> None:
    inputs = prune_inputs(list(range(8)), 5, 0, T=8)
    inputs[3][:] = [-1, -2, 3, 4, 5, 6, np.nan, np.inf]
    inputs[2][3, 2], inputs[2][4, 0], inputs[2][5, 5] = np.nan, np.inf, -np.inf
    _, _, kept_index, _ = check_prune({"window": 2, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 6, 7])
    # only cleaned ones are left to fill up with: the smaller index first
    inputs[6], inputs[7] = np.zeros(7, np.int8), np.array([0, 7], np.int32)
    _, _, kept_index, _ = check_prune({"window": 2, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 3, 4, 6, 7])


def test_cleaned_windows_are_not_redundant() -> None:
    """Nine cleaned tokens and a window of three alike: it is merged first, then the first of the windows tied at 0."""
    inputs = prune_inputs(list(range(2, 14)), 8, 2, T=14)
    inputs[2][:9], inputs[2][9:] = np.nan, 0.5
    inputs[10][:] = 1
    _, _, kept_index, _ = check_prune({"window": 3, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
    inputs[2][:] = np.nan
    _, _, kept_index, _ = check_prune({"window": 3, "merge": "mlerp"}, inputs)
    np.testing.assert_array_equal(kept_index, [0, 1, 2, 5, 8, 9, 10, 11, 12, 13])


def test_a_window_of_zeros_merges_to_zeros() -> None:
    inputs = prune_inputs(list(range(6)), 4, 1, T=6)
    inputs[0][:3] = 0
    inputs[2][:] = np.eye(6, dtype=np.float32)
    inputs[2][:3], inputs[3][:3] = 0.5, 0.0
    hidden, *_ = check_prune({"window": 3, "merge": "mlerp"}, inputs)
    assert not hidden[0].any()


@pytest.mark.parametrize("window", [1, 2, 3])
def test_impossible_counts_fail_where_the_reference_refuses_them(window: int) -> None:
    attributes: dict[str, Any] = {"window": window, "merge": "mlerp"}
    refused = 0
    for V, K, M in itertools.product((1, 2, 6, 9), range(11), range(5)):
        inputs = prune_inputs(list(range(V)), K, M, T=V)
        if V < K or (V > K and min(K, merge_capacity(V, K, window)) < M):
            refused += 1
            with pytest.raises(ValueError, match="slots"):
                token_prune_reference(*inputs, **attributes)
            with pytest.raises((Fail, InvalidArgument), match=r"TopK.*slots_fit"):
                run_body(TOKEN_PRUNE, attributes, inputs)
        else:
            check_prune(attributes, inputs)
    assert refused > 100
