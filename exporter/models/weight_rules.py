# SPDX-License-Identifier: Apache-2.0
"""Weight rules that both families use."""

from __future__ import annotations

import re
from collections.abc import Collection

from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.models.config_checks import MoeConfig
from fastmmoe.runtime.errors import UnsupportedModel


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


BUFFERS = ("*.rotary_emb.inv_freq", "*.position_ids")
"""Tensors that older versions of transformers wrote though they follow from config.json; it drops them, too."""


def has_fused_experts(names: Collection[str]) -> bool:
    """Whether each layer's experts are two tensors, as transformers 5 has them, instead of three an expert.

    Raises:
        UnsupportedModel: there are both, so that one would be left out.
    """
    fused = next((name for name in names if re.search(r"\.mlp\.experts\.(gate_up|down)_proj$", name)), None)
    single = next((name for name in names if re.search(r"\.mlp\.experts\.\d+\.", name)), None)
    if fused is not None and single is not None:
        raise UnsupportedModel(
            f"the experts are in fused tensors ({fused}) and one by one ({single}): expected one of the two forms; "
            "save the model again with save_pretrained"
        )
    return fused is not None


def expert_weights(theirs: str, moe: MoeConfig, hidden_size: int, *, is_fused: bool) -> dict[str, WeightRule]:
    """gate_up [E, 2I, H], gate rows first, and down [E, H, I] of a layer.

    Args:
        theirs: prefix of the experts' names.
        is_fused: they are gate_up_proj and down_proj of these shapes; else one gate_proj, up_proj and down_proj an
            expert.
    """
    E, width = moe.num_experts, moe.intermediate_size
    if is_fused:
        return {
            "mlp.experts.gate_up": same(f"{theirs}gate_up_proj", E, 2 * width, hidden_size),
            "mlp.experts.down": same(f"{theirs}down_proj", E, hidden_size, width),
        }

    sources = (
        (f"{theirs}{e}.{name}.weight", (width, hidden_size)) for e in range(E) for name in ("gate_proj", "up_proj")
    )
    return {
        "mlp.experts.gate_up": WeightRule(tuple(sources), (E, 2 * width, hidden_size)),
        "mlp.experts.down": WeightRule(
            tuple((f"{theirs}{e}.down_proj.weight", (hidden_size, width)) for e in range(E)), (E, hidden_size, width)
        ),
    }
