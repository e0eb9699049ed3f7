# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of FmmTokenPrune against cases computed from the formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmmoe.exporter.ops import token_prune_reference
from fastmmoe.exporter.ops.token_prune.reference import windows_reference
from fastmmoe.runtime.types import Array
from tests.support.operators import (
    GOLDEN_PRUNE_CASES,
    golden_prune_case,
)

FLOAT32_TOLERANCE = 1e-5


@pytest.mark.parametrize("number", range(GOLDEN_PRUNE_CASES))
def test_pruning_equals_the_formulas(golden: Path, number: int) -> None:
    case = golden_prune_case(golden, number)
    with np.errstate(invalid="ignore"):
        outputs = token_prune_reference(**case.inputs, **case.attributes)
    case.check(list(outputs), FLOAT32_TOLERANCE)


def test_a_window_never_spans_a_gap() -> None:
    first, length = windows_reference(np.array([2, 3, 4, 5, 9, 10, 20]), 3)
    np.testing.assert_array_equal(first, [0, 3, 4, 6])
    np.testing.assert_array_equal(length, [3, 1, 2, 1])


def prune_inputs(V: int, K: int, M: int) -> tuple[Array, ...]:
    random = np.random.default_rng(5)
    states = random.standard_normal((2, V + 4, 8)).astype(np.float32)
    probabilities, attention = random.random((V, 6)).astype(np.float32), random.random(V).astype(np.float32)
    slots = [part for n in (K, M) for part in (np.zeros(n, np.int8), np.array([0, n], np.int32))]
    index, offsets = np.arange(2, V + 2, dtype=np.int32), np.array([0, V], np.int32)
    return *states, probabilities, attention, index, offsets, *slots, np.array([0.3], np.float32)


@pytest.mark.parametrize("V", [0, 1, 9])
def test_keeping_all_is_the_identity(V: int) -> None:
    inputs = prune_inputs(V, V, 0)
    hidden, residual, kept_index, visual_index = token_prune_reference(*inputs, window=3, merge="mlerp")
    np.testing.assert_array_equal(hidden, inputs[0])
    np.testing.assert_array_equal(residual, inputs[1])
    np.testing.assert_array_equal(kept_index, np.arange(V + 4))
    np.testing.assert_array_equal(visual_index, inputs[4])


def test_a_cleaned_token_is_kept_after_all_others() -> None:
    inputs = prune_inputs(4, 2, 0)
    inputs[2][0, 3] = np.nan
    inputs[3][:] = [9, 0, np.inf, 0]
    _, _, kept_index, _ = token_prune_reference(*inputs, window=2, merge="mlerp")
    np.testing.assert_array_equal(kept_index, [0, 1, 3, 4, 6, 7])


@pytest.mark.parametrize(("K", "M"), [(10, 0), (3, 3), (8, 1), (2, 3)])
def test_impossible_counts_are_refused(K: int, M: int) -> None:
    with pytest.raises(ValueError, match=f"{K} keep slots for 9" if K > 9 else f"sequence 0: {M} merge slots, at most"):
        token_prune_reference(*prune_inputs(9, K, M), window=3, merge="mlerp")
