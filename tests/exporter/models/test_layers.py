# SPDX-License-Identifier: Apache-2.0
"""The blocks that both families share, against plain formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastmmoe.exporter.models.layers import (
    PATCHES,
    Mlp,
    MoeConfig,
    RMSNorm,
    Rotary,
    SparseMoe,
    VisionAttention,
    VisionBlock,
    VisionMlp,
    rotary_frequencies,
    use_vision_operator,
    vision_program,
)
from fastmmoe.exporter.models.steps import Take
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.runtime.bundle import graph_io

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def filled(module: nn.Module) -> Any:
    """The module with random parameters."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=i)
    return module


def close(ours: torch.Tensor, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_root_mean_square_norm() -> None:
    norm, x = filled(RMSNorm(6, 0.25)), normal(3, 6)
    root = (x.double().square().mean(1, keepdim=True) + 0.25).sqrt()
    close(norm(x), x.double() / root * norm.weight.double())


def test_mlp() -> None:
    mlp, x = filled(Mlp(4, 5)), normal(3, 4)
    gate, up, down = (p.weight.double() for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    gated = x.double() @ gate.T
    close(mlp(x), (gated / (1 + (-gated).exp()) * (x.double() @ up.T)) @ down.T)


def test_frequencies_of_plain_positions() -> None:
    close(rotary_frequencies(100.0, 4), [1.0, 0.1])
    assert rotary_frequencies(100.0, 4).dtype == torch.float32


def test_positions_turn_halves() -> None:
    """Pairs are (i, i + D / 2); a quarter turn makes (-second, first) of them."""
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]]), torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]])
    assert Rotary()(x, cos, sin).tolist() == [[[1, 2, 3, 4]], [[-3, 2, 1, 4]]]


MOE = MoeConfig(num_experts=6, top_k=2, intermediate_size=5, scoring_func="softmax")


def test_a_moe_block_carries_its_attributes() -> None:
    config = MoeConfig(
        6, 3, 5, "sigmoid", "noaux_tc", 2, 1, norm_topk_prob=True, routed_scaling_factor=2.5, expert_bias=True
    )
    moe = SparseMoe(4, config, "none")
    assert SPARSE_MOE.decode(moe.attributes) == {
        "top_k": 3,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": 1,
        "routed_scaling_factor": 2.5,
        "reduction_weights": "none",
        "activation": "swiglu",
        "swiglu_limit": 0.0,
        "expert_bias": 1,
        "weight_format": "float",
        "group_size": 0,
        "zero_points": 0,
        "weight_layout": "logical",
        "expert_size": 0,
    }
    biases = {"router.bias", "gate_up_bias", "down_bias"}
    without = {name for name, _ in SparseMoe(4, MOE, "none").named_parameters()}
    assert {name for name, _ in moe.named_parameters()} - without == biases


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "topk_softmax"])
def test_the_routing_that_pruning_looks_at(scoring_func: str) -> None:
    """Over all experts: sigmoid scores of sigmoid routers, else a softmax."""
    moe = filled(SparseMoe(4, MoeConfig(6, 2, 5, scoring_func), "none"))
    x = normal(3, 4).half()
    logits = x.double() @ moe.router.weight.double().T
    expected = 1 / (1 + (-logits).exp()) if scoring_func == "sigmoid" else logits.softmax(1)
    found = moe.routing_probs(x)
    assert found.dtype == torch.float32
    close(found, expected)


def test_a_moe_block_is_its_operator() -> None:
    """Of every token two experts, of visual row 1 one; weights as docs/operators.md says (FmmSparseMoE)."""
    moe, x = filled(SparseMoe(4, MOE, "preserve_sum")), normal(3, 4)
    found = moe(x, torch.tensor([1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32))
    probabilities = (x.double() @ moe.router.weight.double().T).softmax(1)
    for t in range(3):
        best = probabilities[t].argsort(descending=True)[:2]
        used = best[:1] if t == 1 else best
        weights = probabilities[t, used] * probabilities[t, best].sum() / probabilities[t, used].sum()
        expected = torch.zeros(4, dtype=torch.float64)
        for weight, e in zip(weights, used, strict=True):
            gate, up = (moe.gate_up[e].double() @ x[t].double()).chunk(2)
            expected += weight * (moe.down[e].double() @ (gate / (1 + (-gate).exp()) * up))
        np.testing.assert_allclose(found[t], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [False, True])
def test_a_block_of_the_tower(scale: bool) -> None:
    attn, mlp = nn.Linear(4, 4), nn.Linear(4, 4)
    block = filled(VisionBlock(4, attn, mlp, nn.LayerNorm(4), nn.LayerNorm(4), scale=scale))
    x = normal(2, 3, 4)
    first, second = (block.ls1, block.ls2) if scale else (1.0, 1.0)
    y = x + first * attn(block.norm1(x))
    close(block(x), y + second * mlp(block.norm2(y)))
    assert ("ls1" in dict(block.named_parameters())) == scale


@pytest.mark.parametrize("compute", ["", "bfloat16"])
@pytest.mark.parametrize(("qkv_bias", "eps"), [(True, None), (False, 1e-6)])
def test_attention_of_the_tower(qkv_bias: bool, eps: float | None, compute: str) -> None:
    """Every patch sees every other of its tile; the norms are of whole rows of q and k, before heads are split."""
    attention = filled(VisionAttention(8, 2, qkv_bias=qkv_bias, qk_norm_eps=eps))
    use_vision_operator(nn.Sequential(attention), compute)
    assert (attention.qkv.bias is not None) == qkv_bias
    x = normal(2, 5, 8)
    q, k, v = attention.qkv(x).double().chunk(3, dim=-1)
    if eps is not None:
        q, k = (y / (y.square().mean(-1, keepdim=True) + eps).sqrt() for y in (q, k))
        q, k = q * attention.q_norm.weight.double(), k * attention.k_norm.weight.double()
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        heads.append(scores.softmax(-1) @ v[..., part])
    expected = torch.cat(heads, dim=-1) @ attention.proj.weight.double().T + attention.proj.bias.double()
    np.testing.assert_allclose(attention(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_mlp_of_the_tower(approximate: str) -> None:
    mlp, x = filled(VisionMlp(4, 6, approximate)), normal(3, 4)
    y = mlp.fc1(x).double()
    inner = y + 0.044715 * y**3 if approximate == "tanh" else y
    gate = torch.tanh(math.sqrt(2 / math.pi) * inner) if approximate == "tanh" else torch.erf(y / math.sqrt(2))
    close(mlp(x), (0.5 * y * (1 + gate)) @ mlp.fc2.weight.double().T + mlp.fc2.bias.double())


def test_a_tower_is_a_chain_of_blocks() -> None:
    """What the blocks are given is what was given before; the layout goes to the projector alone."""
    block: Take = (("tiles", 3), torch.float32)
    takes: dict[str, Take] = {"pixels": block, "layout": (("V",), torch.int32)}
    first, last = Chained("pixels", PATCHES), Chained(PATCHES, graph_io.IMAGE_FEATURES)
    blocks = nn.ModuleList(nn.Hardtanh(i, 9) for i in (1, 2))
    program = vision_program(first, blocks, last, takes, block_take=block, layout=("layout",))
    assert [step.name for step in program.steps] == ["patches", "blocks.0", "blocks.1", "projector"]
    assert [list(step.takes) for step in program.steps] == [["pixels"], [PATCHES], [PATCHES], [PATCHES, "layout"]]
    found = program.run({"pixels": torch.tensor([[0.0, 3.0]]), "layout": torch.zeros(0)})
    assert found[graph_io.IMAGE_FEATURES].tolist() == [[4, 12]]


class Chained(nn.Module):
    """Twice what it is given, under another name."""

    def __init__(self, given: str, result: str) -> None:
        super().__init__()
        self.given, self.result = given, result

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {self.result: 2 * inputs[self.given]}
