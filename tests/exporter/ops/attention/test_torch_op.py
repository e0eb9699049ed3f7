# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's torch op, over the table of cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.exporter.ops.attention import torch_op as _attention  # noqa: F401  (registers the operator)
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case, make_inputs
from tests.support.attention_checks import check_outputs

ALWAYS = sum(not t.is_conditional for t in ATTENTION.inputs)


def arguments(case: Case, inputs: dict[str, Array], dtype: torch.dtype = torch.float32) -> list[Any]:
    tensors = [torch.from_numpy(a) for a in inputs.values()]
    tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    return [*tensors[:ALWAYS], tensors[ALWAYS:], ATTENTION.encode(case.attributes)]


@pytest.mark.parametrize("case", [*SMALL, *OTHER_WIDTHS, *LARGE], ids=lambda case: case.name)
def test_equals_the_reference(case: Case) -> None:
    inputs = make_inputs(case)
    outputs = torch.ops.fastmmoe.attention(*arguments(case, inputs))
    check_outputs(case, inputs, [y.numpy() for y in outputs])


@pytest.mark.parametrize("case", [*SMALL, *OTHER_WIDTHS], ids=lambda case: case.name)
def test_its_fake_has_the_shapes_and_types(case: Case) -> None:
    given = arguments(case, make_inputs(case), torch.bfloat16)
    real = torch.ops.fastmmoe.attention(*given)
    with torch._subclasses.FakeTensorMode() as mode:
        faked = [[mode.from_tensor(t) for t in g] if isinstance(g, list) else g for g in given]
        faked = [mode.from_tensor(g) if isinstance(g, torch.Tensor) else g for g in faked]
        fake = torch.ops.fastmmoe.attention(*faked)
    assert [(y.shape, y.dtype) for y in fake] == [(y.shape, y.dtype) for y in real]


def test_writes_to_no_input() -> None:
    given = arguments(SMALL[10], make_inputs(SMALL[10]))
    before = [g.clone() for g in given[:ALWAYS]]
    torch.ops.fastmmoe.attention(*given)
    for after, was in zip(given, before, strict=False):
        np.testing.assert_array_equal(after.numpy(), was.numpy())


def test_refuses_what_the_contract_refuses() -> None:
    given = arguments(SMALL[6], make_inputs(SMALL[6]))
    given[3] = torch.tensor([0, 1, 257, 37, 256], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"past_lengths\[2\] is 257, expected 0 to 256"):
        torch.ops.fastmmoe.attention(*given)
    with pytest.raises(ValueError, match="9 inputs, expected with these attributes are 8"):
        torch.ops.fastmmoe.attention(*given[:6], [*given[6], given[0]], given[7])
