# SPDX-License-Identifier: Apache-2.0
"""The torch op of FmmRotary against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import ROTARY, rotary_reference
from fastmmoe.exporter.ops.rotary import torch_op as _rotary  # noqa: F401  (registers the operator)
from tests.support.rotary_cases import CASES, REFUSED, RotaryCase, limits, refused_inputs


@pytest.mark.parametrize("name", CASES)
def test_torch_op(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs
    expected = rotary_reference(case.attributes, inputs, np.float64)
    x, cos, sin, *norm = (torch.from_numpy(values) for values in inputs.values())
    y = torch.ops.fastmmoe.rotary(x, cos, sin, norm, ROTARY.encode(case.attributes))
    assert (np.abs(y.numpy() - expected) <= limits(inputs, expected)).all()
    on_meta = [tensor.to("meta") for tensor in (x, cos, sin)]
    fake = torch.ops.fastmmoe.rotary(*on_meta, [w.to("meta") for w in norm], ROTARY.encode(case.attributes))
    assert (fake.shape, fake.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_shapes_that_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    x, cos, sin, norm = (torch.from_numpy(values) for values in refused_inputs(shapes).values())
    with pytest.raises(ValueError, match=message):
        torch.ops.fastmmoe.rotary(x, cos, sin, [norm], ROTARY.encode(RotaryCase(3, 2, 4, True).attributes))
