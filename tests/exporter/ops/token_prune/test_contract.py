# SPDX-License-Identifier: Apache-2.0
"""The contract of FmmTokenPrune: what it allows, and what it says of the rest."""

from __future__ import annotations

import itertools
import math

from fastmmoe.exporter.ops.token_prune.contract import merge_capacity


def test_merge_capacity_leaves_exactly_the_kept_tokens() -> None:
    for V, K, window in itertools.product(range(1, 30), range(30), (2, 3, 5)):
        M = merge_capacity(V, K, window)
        tokens_left, windows = V - M * window, math.ceil(V / window)
        assert M == 0 or (tokens_left >= K - M and windows > M)
    assert merge_capacity(100, 50, 1) == merge_capacity(0, 0, 3) == 0
