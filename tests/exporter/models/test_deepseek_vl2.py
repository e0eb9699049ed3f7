# SPDX-License-Identifier: Apache-2.0
"""Gates of DeepSeek-VL2 that no golden checkpoint has, on random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle import graph_io
from tests.support.torch_models import TorchModel

FLOAT32_TOLERANCE = 1e-4


SIGMOID_GATE = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}


GROUP_GATE = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5}


def expert_weights(gate: dict[str, Any], logits: torch.Tensor, bias: torch.Tensor | None, used: int) -> torch.Tensor:
    """[E] weights of one token that uses `used` of 4 experts, as docs/operators.md says (FmmSparseMoE)."""
    E, k, weights = len(logits), 4, torch.zeros_like(logits)
    if gate is SIGMOID_GATE:
        assert bias is not None
        scores = logits.sigmoid()
        chosen = (scores + bias).argsort(descending=True)[:used]
        weights[chosen] = scores[chosen] / scores[chosen].sum() * 2.0
        return weights
    scores = logits.softmax(0)
    groups = scores.view(4, -1).amax(1).argsort(descending=True)[:2]
    allowed = torch.tensor([e // (E // 4) in groups.tolist() for e in range(E)])
    best = scores.masked_fill(~allowed, 0).argsort(descending=True)[:k]
    kept = best[:used]
    weights[kept] = scores[kept] * scores[best].sum() / scores[kept].sum() * 1.5
    return weights


def write_gate_checkpoint(directory: Path, gate: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Change the checkpoint's gate; return its tensors in float64."""
    config = json.loads((directory / "config.json").read_text())
    config["language_config"] |= gate
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    if gate is SIGMOID_GATE:
        generator = torch.Generator().manual_seed(2)
        for name in [n for n in tensors if n.endswith(".mlp.gate.weight")]:
            bias = torch.randn(len(tensors[name]), generator=generator) * 0.3
            tensors[name.replace("gate.weight", "gate.e_score_correction_bias")] = bias
        save_file(tensors, directory / "model.safetensors")
    return {name: tensor.double() for name, tensor in tensors.items()}


def run_moe(
    w: dict[str, torch.Tensor], layer: int, x: torch.Tensor, visual: set[int], visual_top_k: int, gate: dict[str, Any]
) -> torch.Tensor:
    """The MoE block of one layer from the checkpoint's own tensors, token by token, in float64."""
    p = f"language.model.layers.{layer}.mlp."

    def mlp(name: str, rows: torch.Tensor) -> torch.Tensor:
        gate_weight, up, down = (w[f"{p}{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (F.silu(rows @ gate_weight.T) * (rows @ up.T)) @ down.T

    logits = x @ w[f"{p}gate.weight"].T
    bias = w.get(f"{p}gate.e_score_correction_bias")
    out = mlp("shared_experts", x)
    for t, row in enumerate(logits):
        weights = expert_weights(gate, row, bias, visual_top_k if t in visual else 4)
        for e in weights.nonzero().flatten().tolist():
            out[t] += weights[e] * mlp(f"experts.{e}", x[t])
    return out


@pytest.mark.parametrize("gate", [SIGMOID_GATE, GROUP_GATE], ids=["sigmoid noaux_tc", "group_limited_greedy"])
def test_other_gates_of_deepseek(gate: dict[str, Any], own_checkpoint: Callable[[str], Path]) -> None:
    """A whole pruned prefill; the MoE block of every layer equals the plain computation on the same input."""
    directory = own_checkpoint("dsvl2-mla")
    tensors = write_gate_checkpoint(directory, gate)
    model = TorchModel(directory, PolicyOptions(prune_layers=(1, 3)))
    seen: dict[int, tuple[Any, ...]] = {}
    for i in model.model.config.moe_layers:
        block = model.language_model.layers[i].mlp
        block.register_forward_hook(lambda _, args, y, i=i: seen.update({i: (*args, y)}))
    embeds = torch.randn(60, model.model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    outputs = model.prefill(embeds, np.arange(5, 45, dtype=np.int32), model.schedule(40, 0.5))
    assert torch.isfinite(outputs[graph_io.LOGITS]).all()
    for i, (x, visual_index, visual_top_k, y) in seen.items():
        assert int(visual_top_k) == (4 if i < 2 else 2)
        expected = run_moe(tensors, i, x.double(), set(visual_index.tolist()), int(visual_top_k), gate)
        np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    assert [len(seen[i][0]) for i in (1, 2, 3, 4, 5)] == [48, 48, 40, 40, 40]
