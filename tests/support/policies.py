# SPDX-License-Identifier: Apache-2.0
"""Policies of a published model that several tests plan by."""

from __future__ import annotations

from msgspec.structs import replace

from fastmmoe.runtime.method.policy import Policy

DEEPSEEK = Policy(
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
"""DeepSeek-VL2-small's: layers 1 to 26 have experts, 6 for a token."""

NO_METHOD = replace(DEEPSEEK, method="none", prune_layers={}, stage_exponents=(), retention=1.0)
"""Of a graph that prunes by no method."""
