# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE in torch: against the dense formula, and as a traceable custom op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from tests.support.operators import (
    moe_attributes,
)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


sparse_moe = torch.ops.fastmmoe.sparse_moe.default


def moe_arguments(T: int, dtype: torch.dtype, *, expert_bias: bool) -> list[Any]:
    E, H, I = 8, 16, 12  # noqa: E741
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(of)

    return [
        normal(T, H),
        normal(T, E, of=torch.float32),
        torch.arange(0, T, 3, dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32),
        torch.zeros(E),
        normal(E, 2 * I, H),
        normal(E, H, I),
        [normal(E, 2 * I), normal(E, H)] if expert_bias else [],
        SPARSE_MOE.encode(
            moe_attributes(
                top_k=4,
                scoring_func="topk_softmax" if expert_bias else "softmax",
                activation="swiglu_oai" if expert_bias else "swiglu",
                expert_bias=int(expert_bias),
            )
        ),
    ]


# The operators exist for tracing and evaluation only, so nothing is registered for autograd or mutation.
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("expert_bias", [False, True])
def test_sparse_moe_is_a_sound_custom_op(dtype: torch.dtype, expert_bias: bool) -> None:
    arguments = moe_arguments(7, dtype, expert_bias=expert_bias)
    results = torch.library.opcheck(sparse_moe, tuple(arguments), test_utils=CHECKS)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("expert_bias", [False, True])
def test_sparse_moe_equals_every_expert_run_on_every_token(dtype: torch.dtype, expert_bias: bool) -> None:
    """The dense formula in float64 on the same rounded values."""
    T = 11
    arguments = moe_arguments(T, dtype, expert_bias=expert_bias)
    hidden, logits, gate_up, down = (arguments[i].double() for i in (0, 1, 5, 6))
    biases = [b.double() for b in arguments[7]] or [torch.zeros(()), torch.zeros(())]
    best = logits.argsort(dim=1, descending=True)
    weights = torch.zeros_like(logits)
    probs = logits.softmax(1)
    for t in range(T):
        kept = best[t, : 2 if t % 3 == 0 else 4]
        if expert_bias:
            weights[t, kept] = logits[t, kept].softmax(0)
        else:
            weights[t, kept] = probs[t, kept] * probs[t, best[t, :4]].sum() / probs[t, kept].sum()
    gate, up = (torch.einsum("th,eih->tei", hidden, gate_up) + biases[0]).chunk(2, dim=-1)
    if expert_bias:
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
    else:
        inner = gate * torch.sigmoid(gate) * up
    y = torch.einsum("tei,ehi->teh", inner, down) + biases[1]
    expected = (weights[:, :, None] * y).sum(1)
    scale = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(sparse_moe(*arguments).double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)
