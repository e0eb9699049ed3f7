# SPDX-License-Identifier: Apache-2.0
"""The torch operators: token_prune against cases computed from the formulas, both as traceable custom ops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import SPARSE_MOE, TOKEN_PRUNE
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.runtime.method.schedule import merge_count
from fastmmoe.runtime.types import Array

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CASES = 14
TEXT_BEHIND = 2
token_prune = torch.ops.fastmmoe.token_prune.default
sparse_moe = torch.ops.fastmmoe.sparse_moe.default


def slots_of(V: int, K: int, M: int) -> list[torch.Tensor]:
    """Slots and offsets of one sequence: the inputs between visual_index and alpha."""
    visual, keep, merge = (torch.tensor([0, n], dtype=torch.int32) for n in (V, K, M))
    return [visual, torch.zeros(K, dtype=torch.int8), keep, torch.zeros(M, dtype=torch.int8), merge]


def read_case(golden: Path, number: int, dtype: torch.dtype) -> tuple[list[Any], dict[str, Array]]:
    """Arguments of token_prune with random text around the visual rows, and the expected arrays of the case."""
    with np.load(golden / "fastmmoe" / "prune_cases.npz") as arrays:
        case = json.loads(str(arrays["index"]))[number]
        prefix = f"{number}_"
        data = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
    assert case["case"] == number
    visual_index = torch.from_numpy(data["visual_index"].astype(np.int32))
    generator = torch.Generator().manual_seed(number)
    states = torch.randn(2, int(visual_index[-1]) + 1 + TEXT_BEHIND, case["hidden"], generator=generator)
    for rows, name in zip(states, ("hidden", "residual"), strict=True):
        rows[visual_index.long()] = torch.from_numpy(data[name].astype(np.float32))
    M = merge_count(case["visual"], case["keep"], case["merge_ratio"], case["window"])
    arguments = [
        *states.to(dtype),
        torch.from_numpy(data["routing"].astype(np.float32)),
        torch.from_numpy(data["attention"].astype(np.float32)),
        visual_index,
        *slots_of(case["visual"], case["keep"], M),
        torch.tensor([case["alpha"]]),
        TOKEN_PRUNE.encode({"window": case["window"], "merge": case["merge"]}),
    ]
    return arguments, data


def test_every_recorded_case_is_run(golden: Path) -> None:
    with np.load(golden / "fastmmoe" / "prune_cases.npz") as arrays:
        assert len(json.loads(str(arrays["index"]))) == CASES


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("number", range(CASES))
def test_pruning_equals_the_formulas(golden: Path, number: int, dtype: torch.dtype) -> None:
    """Survivors exactly; vectors within the dtype's rounding, which the inputs have gone through too."""
    arguments, expected = read_case(golden, number, dtype)
    hidden, residual, visual_index = arguments[0], arguments[1], arguments[4].numpy()
    hidden_out, residual_out, kept_index, visual_index_out = token_prune(*arguments)
    assert (hidden_out.dtype, residual_out.dtype) == (dtype, dtype)
    survivors = kept_index.numpy()[visual_index_out.numpy()]
    np.testing.assert_array_equal(np.searchsorted(visual_index, survivors), expected["source"])
    for ours, name in ((hidden_out, "hidden_out"), (residual_out, "residual_out")):
        theirs = torch.from_numpy(expected[name]).float()
        scale = max(1.0, float(theirs.abs().max()))
        np.testing.assert_allclose(ours[visual_index_out.long()].float(), theirs, rtol=0, atol=TOLERANCE[dtype] * scale)
    is_text = ~np.isin(kept_index.numpy(), visual_index)
    np.testing.assert_array_equal(kept_index[is_text], np.setdiff1d(np.arange(len(hidden)), visual_index))
    assert torch.equal(hidden_out[is_text], hidden[kept_index[is_text].long()])
    assert torch.equal(residual_out[is_text], residual[kept_index[is_text].long()])


def prune_arguments(V: int, K: int, M: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        *torch.randn(2, V + 4, 8, generator=generator).to(dtype),
        torch.rand(V, 6, generator=generator),
        torch.rand(V, generator=generator),
        torch.arange(2, V + 2, dtype=torch.int32),
        *slots_of(V, K, M),
        torch.tensor([0.3]),
        TOKEN_PRUNE.encode({"window": 3, "merge": "mlerp"}),
    ]


@pytest.mark.parametrize("V", [0, 1, 9])
def test_keeping_all_is_the_identity(V: int) -> None:
    """The outputs are values of their own: a custom op may not return its input."""
    arguments = prune_arguments(V, V, 0)
    hidden, residual, kept_index, visual_index = token_prune(*arguments)
    assert torch.equal(hidden, arguments[0])
    assert torch.equal(residual, arguments[1])
    assert torch.equal(kept_index, torch.arange(V + 4, dtype=torch.int32))
    assert torch.equal(visual_index, arguments[4])
    assert hidden.data_ptr() != arguments[0].data_ptr()


def test_a_merged_row_has_the_mean_direction_and_the_greatest_norm() -> None:
    """Two windows, one merged: the one with alike routing and no attention."""
    arguments = prune_arguments(6, 4, 1)
    arguments[2] = torch.tensor([[1.0, 0, 0]] * 3 + [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    arguments[3] = torch.tensor([0.0, 0, 0, 1, 1, 1])
    hidden, _, kept_index, visual_index = token_prune(*arguments)
    assert kept_index.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert visual_index.tolist() == [2, 3, 4, 5]
    window = arguments[0][2:5]
    mean = window.mean(0)
    expected = mean / mean.norm() * window.norm(dim=1).max()
    np.testing.assert_allclose(hidden[2], expected, rtol=0, atol=TOLERANCE[torch.float32])


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
            {
                "top_k": 4,
                "scoring_func": "topk_softmax" if expert_bias else "softmax",
                "topk_method": "greedy",
                "n_group": 1,
                "topk_group": 1,
                "norm_topk_prob": 0,
                "routed_scaling_factor": 1.0,
                "reduction_weights": "preserve_sum",
                "activation": "swiglu_oai" if expert_bias else "swiglu",
                "swiglu_limit": 7.0,
                "expert_bias": int(expert_bias),
                "weight_format": "float",
                "group_size": 0,
                "zero_points": 0,
            }
        ),
    ]


# The operators exist for tracing and evaluation only, so nothing is registered for autograd or mutation.
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("V", "K", "M"), [(0, 0, 0), (9, 9, 0), (9, 4, 1)])
def test_token_prune_is_a_sound_custom_op(V: int, K: int, M: int, dtype: torch.dtype) -> None:
    """Schema (nothing aliased or mutated) and the fake kernel's shapes and dtypes against the real ones."""
    results = torch.library.opcheck(token_prune, tuple(prune_arguments(V, K, M, dtype)), test_utils=CHECKS)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("expert_bias", [False, True])
def test_sparse_moe_is_a_sound_custom_op(dtype: torch.dtype, expert_bias: bool) -> None:
    arguments = moe_arguments(7, dtype, expert_bias=expert_bias)
    results = torch.library.opcheck(sparse_moe, tuple(arguments), test_utils=CHECKS)
    assert set(results.values()) == {"SUCCESS"}


def test_fake_kernels_give_symbolic_shapes() -> None:
    """T - V + K rows and K visual rows, whatever their values."""
    real = prune_arguments(9, 4, 1)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in real]
        hidden, residual, kept_index, visual_index = token_prune(*fake)
    assert [tuple(t.shape) for t in (hidden, residual, kept_index, visual_index)] == [(8, 8), (8, 8), (8,), (4,)]
    assert [t.dtype for t in (kept_index, visual_index)] == [torch.int32, torch.int32]


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
