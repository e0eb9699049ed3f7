# SPDX-License-Identifier: Apache-2.0
"""Weight rules: which tensors a parameter is made from, with which shapes, and how experts are stacked."""

from __future__ import annotations

import fnmatch

import pytest
import torch

from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.models.config_checks import MoeConfig
from fastmmoe.exporter.models.weight_rules import BUFFERS, expert_weights, has_fused_experts, linear, norm, same
from fastmmoe.runtime.errors import UnsupportedModel

MOE = MoeConfig(num_experts=3, top_k=2, intermediate_size=2, scoring_func="softmax")
H = 4
PREFIX = "model.layers.0.mlp.experts."


def sources(rules: dict[str, WeightRule]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {name: dict(rule.sources) for name, rule in rules.items()}


def test_a_tensor_as_it_is() -> None:
    rule = same("theirs", 2, 3)
    assert rule.sources == (("theirs", (2, 3)),)
    tensor = torch.zeros(2, 3)
    assert rule.build([tensor]).data_ptr() == tensor.data_ptr()


def test_linear_layers_and_norms() -> None:
    assert sources(linear("a", "b", 5, 7, bias=False)) == {"a.weight": {"b.weight": (5, 7)}}
    assert sources(linear("a", "b", 5, 7, bias=True)) == {"a.weight": {"b.weight": (5, 7)}, "a.bias": {"b.bias": (5,)}}
    assert sources(norm("a", "b", 5, bias=False)) == {"a.weight": {"b.weight": (5,)}}
    assert sources(norm("a", "b", 5, bias=True)) == {"a.weight": {"b.weight": (5,)}, "a.bias": {"b.bias": (5,)}}


def test_experts_one_by_one() -> None:
    """Gate rows stand before up rows, expert by expert."""
    rules = expert_weights(PREFIX, MOE, H, is_fused=False)
    assert list(rules) == ["mlp.experts.gate_up", "mlp.experts.down"]
    tensors = {
        f"{PREFIX}{e}.{part}_proj.weight": torch.full((H, 2) if part == "down" else (2, H), 10.0 * e + i)
        for e in range(3)
        for i, part in enumerate(("gate", "up", "down"))
    }
    used = [name for rule in rules.values() for name, _ in rule.sources]
    assert sorted(used) == sorted(tensors)
    assert all(tuple(tensors[name].shape) == shape for rule in rules.values() for name, shape in rule.sources)
    gate_up, down = (rule.build([tensors[name] for name, _ in rule.sources]) for rule in rules.values())
    assert (gate_up.shape, down.shape) == ((3, 4, H), (3, H, 2))
    assert gate_up[:, :, 0].tolist() == [[0, 0, 1, 1], [10, 10, 11, 11], [20, 20, 21, 21]]
    assert down[:, 0, 0].tolist() == [2, 12, 22]


def test_fused_experts_are_taken_as_they_are() -> None:
    assert sources(expert_weights(PREFIX, MOE, H, is_fused=True)) == {
        "mlp.experts.gate_up": {f"{PREFIX}gate_up_proj": (3, 4, H)},
        "mlp.experts.down": {f"{PREFIX}down_proj": (3, H, 2)},
    }


def test_which_form_a_checkpoint_has() -> None:
    one_by_one, fused = f"{PREFIX}0.gate_proj.weight", f"{PREFIX}down_proj"
    assert not has_fused_experts([])
    assert not has_fused_experts([one_by_one, "model.layers.0.mlp.shared_experts.down_proj.weight"])
    assert not has_fused_experts([f"{PREFIX}down_proj_bias"])
    assert has_fused_experts([fused])
    with pytest.raises(UnsupportedModel) as raised:
        has_fused_experts([one_by_one, fused])
    assert str(raised.value) == (
        f"the experts are in fused tensors ({fused}) and one by one ({one_by_one}): expected one of the two forms; "
        "save the model again with save_pretrained"
    )


def test_buffers_are_those_that_follow_from_the_configuration() -> None:
    def is_buffer(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in BUFFERS)

    assert is_buffer("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert is_buffer("vision_tower.embeddings.position_ids")
    assert not is_buffer("vision_tower.embeddings.position_embeddings")
    assert not is_buffer("inv_freq")
