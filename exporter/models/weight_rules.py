# SPDX-License-Identifier: Apache-2.0
"""Weight rules that both families use."""

from __future__ import annotations

import torch

from fastmmoe.exporter.checkpoint import WeightRule
from fastmmoe.exporter.models.layers import MoeConfig


def same(name: str, *shape: int) -> WeightRule:
    """The checkpoint's tensor as it is."""
    return WeightRule(((name, shape),))


def linear(ours: str, theirs: str, out_features: int, in_features: int, *, bias: bool) -> dict[str, WeightRule]:
    """Weight [out, in] and, with `bias`, bias [out] of a linear layer."""
    rules = {f"{ours}.weight": same(f"{theirs}.weight", out_features, in_features)}
    if bias:
        rules[f"{ours}.bias"] = same(f"{theirs}.bias", out_features)
    return rules


def norm(ours: str, theirs: str, size: int, *, bias: bool) -> dict[str, WeightRule]:
    """Weight [size] and, with `bias`, bias [size] of a norm."""
    return {f"{ours}.{part}": same(f"{theirs}.{part}", size) for part in (("weight", "bias") if bias else ("weight",))}


def separate_experts(theirs: str, moe: MoeConfig, hidden_size: int) -> dict[str, WeightRule]:
    """gate_up [E, 2I, H] and down [E, H, I] from one gate_proj, up_proj and down_proj an expert."""
    E, width = moe.num_experts, moe.intermediate_size

    def gate_up(weights: list[torch.Tensor]) -> torch.Tensor:
        out = weights[0].new_empty(E, 2, width, hidden_size)
        for i, weight in enumerate(weights):
            out[i // 2, i % 2] = weight
        return out.view(E, 2 * width, hidden_size)

    sources = (
        (f"{theirs}{e}.{name}.weight", (width, hidden_size)) for e in range(E) for name in ("gate_proj", "up_proj")
    )
    return {
        "mlp.experts.gate_up": WeightRule(tuple(sources), gate_up),
        "mlp.experts.down": WeightRule(
            tuple((f"{theirs}{e}.down_proj.weight", (hidden_size, width)) for e in range(E)), torch.stack
        ),
    }
