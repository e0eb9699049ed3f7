# SPDX-License-Identifier: Apache-2.0
"""The contract of FmmTokenPrune: what it allows, and what it says of the rest."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops.token_prune.contract import check_prune_inputs, merge_capacity
from tests.support.operators import MLERP, prune_inputs


def test_merge_capacity_leaves_exactly_the_kept_tokens() -> None:
    for V, K, window in itertools.product(range(1, 30), range(30), (2, 3, 5)):
        M = merge_capacity(V, K, window)
        tokens_left, windows = V - M * window, math.ceil(V / window)
        assert M == 0 or (tokens_left >= K - M and windows > M)
    assert merge_capacity(100, 50, 1) == merge_capacity(0, 0, 3) == 0


@pytest.mark.parametrize(
    ("V", "K", "window", "M"), [(9, 3, 3, 2), (9, 8, 3, 0), (9, 7, 3, 1), (9, 0, 3, 2), (9, 9, 3, 0)]
)
def test_the_most_windows_that_may_be_merged(V: int, K: int, window: int, M: int) -> None:
    """min(ceil(9 / 3) - 1, floor((9 - K) / 2)); one window stays as it is."""
    assert merge_capacity(V, K, window) == M


def test_inputs_of_the_contract() -> None:
    for K, M, alpha in ((20, 3, 0.0), (44, 0, 1.0), (0, 0, 0.5)):
        check_prune_inputs(MLERP, prune_inputs(K=K, M=M, alpha=alpha))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": np.array([1.01], np.float32)}, "alpha is 1.01, expected 0 to 1"),
        ({"alpha": np.array([-0.5], np.float32)}, "alpha is -0.5, expected 0 to 1"),
        ({"alpha": np.array([np.nan], np.float32)}, "alpha is nan, expected 0 to 1"),
        ({"alpha": np.zeros(2, np.float32)}, r"alpha is \[2\], expected \[1\] = \[1\]"),
        ({"visual_index": np.arange(20, 64, dtype=np.int32)}, r"visual_index\[40\] is 60, expected 0 to 59"),
        ({"visual_index": np.zeros(44, np.int32)}, r"visual_index\[1\] is 0 after 0, expected ascending rows"),
        ({"keep_slots": np.zeros(45, np.int8)}, "45 keep slots for 44 visual tokens; at most 44 can be kept"),
        ({"keep_offsets": np.array([0, 19], np.int32)}, r"keep_offsets is \[0, 19\], expected 0 to K = 20"),
        ({"merge_slots": np.zeros(4, np.int8)}, r"merge_offsets is \[0, 3\], expected 0 to M = 4"),
        ({"attention": np.zeros(43, np.float32)}, r"attention is \[43\], expected \[V\] = \[44\]"),
        (
            {"residual": np.zeros((60, 12), np.float16)},
            "residual is float16, expected float as the other tensors of type F",
        ),
    ],
)
def test_inputs_outside_the_contract(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FmmTokenPrune: {message}"):
        check_prune_inputs(MLERP, prune_inputs() | changes)


def test_no_more_visual_tokens_than_rows() -> None:
    inputs = prune_inputs() | {name: np.zeros((43, 12), np.float32) for name in ("hidden_states", "residual")}
    with pytest.raises(ValueError, match=r"^FmmTokenPrune: V is 44, expected at most T = 43$"):
        check_prune_inputs(MLERP, inputs)
