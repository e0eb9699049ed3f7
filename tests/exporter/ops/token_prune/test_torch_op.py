# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune in torch: against cases computed from the formulas, and as a traceable custom op."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import TOKEN_PRUNE
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from tests.support.operators import (
    GOLDEN_PRUNE_CASES,
    golden_prune_case,
)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


token_prune = torch.ops.fastmmoe.token_prune.default


def slots_of(V: int, K: int, M: int) -> list[torch.Tensor]:
    """Slots and offsets of one sequence: the inputs between visual_index and alpha."""
    visual, keep, merge = (torch.tensor([0, n], dtype=torch.int32) for n in (V, K, M))
    return [visual, torch.zeros(K, dtype=torch.int8), keep, torch.zeros(M, dtype=torch.int8), merge]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("number", range(GOLDEN_PRUNE_CASES))
def test_pruning_equals_the_formulas(golden: Path, number: int, dtype: torch.dtype) -> None:
    """Survivors exactly; vectors within the dtype's rounding, which the inputs have gone through too."""
    case = golden_prune_case(golden, number)
    tensors = [torch.from_numpy(array) for array in case.inputs.values()]
    states = [tensor.to(dtype) for tensor in tensors[:2]]
    outputs = token_prune(*states, *tensors[2:], TOKEN_PRUNE.encode(case.attributes))
    assert [output.dtype for output in outputs[:2]] == [dtype, dtype]
    case.inputs.update(hidden_states=states[0].float().numpy(), residual=states[1].float().numpy())
    case.check(
        [output.float().numpy() for output in outputs[:2]] + [index.numpy() for index in outputs[2:]], TOLERANCE[dtype]
    )


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


# The operators exist for tracing and evaluation only, so nothing is registered for autograd or mutation.
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("V", "K", "M"), [(0, 0, 0), (9, 9, 0), (9, 4, 1)])
def test_token_prune_is_a_sound_custom_op(V: int, K: int, M: int, dtype: torch.dtype) -> None:
    """Schema (nothing aliased or mutated) and the fake kernel's shapes and dtypes against the real ones."""
    results = torch.library.opcheck(token_prune, tuple(prune_arguments(V, K, M, dtype)), test_utils=CHECKS)
    assert set(results.values()) == {"SUCCESS"}


def test_fake_kernels_give_symbolic_shapes() -> None:
    """T - V + K rows and K visual rows, whatever their values."""
    real = prune_arguments(9, 4, 1)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in real]
        hidden, residual, kept_index, visual_index = token_prune(*fake)
    assert [tuple(t.shape) for t in (hidden, residual, kept_index, visual_index)] == [(8, 8), (8, 8), (8,), (4,)]
    assert [t.dtype for t in (kept_index, visual_index)] == [torch.int32, torch.int32]
