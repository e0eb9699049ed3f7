# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ml_dtypes
import pytest
import torch

from fastmmoe.exporter.ops import SPARSE_MOE, sparse_moe_reference
from fastmmoe.exporter.ops.sparse_moe import torch_op as _op  # noqa: F401  (registers the operator)
from fastmmoe.runtime.types import Array
from tests.support.moe_layouts import KINDS, LAYOUTS, Kind, stored_case
from tests.support.operators import assert_close


def as_tensor(array: Array) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_operator_on_stored_weights(kind: Kind, layout: str) -> None:
    if not kind.has(layout):
        pytest.skip(f"there is no {kind} as {layout}")
    for expert_bias in (0, 1):
        inputs, attributes = stored_case(kind, layout, T=9, expert_bias=expert_bias)
        *first, gate_up, down = (as_tensor(array) for array in list(inputs.values())[:7])
        others = [as_tensor(array) for array in list(inputs.values())[7:]]
        found = torch.ops.fastmmoe.sparse_moe(*first, gate_up, down, others, SPARSE_MOE.encode(attributes))
        assert_close(found.numpy(), sparse_moe_reference(**inputs, **attributes))
