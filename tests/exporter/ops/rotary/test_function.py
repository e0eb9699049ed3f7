# SPDX-License-Identifier: Apache-2.0
"""The function body of FmmRotary on stock onnxruntime against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops import ROTARY, rotary_reference
from tests.support.operator_bodies import run_body
from tests.support.rotary_cases import CASES, limits


@pytest.mark.parametrize("name", CASES)
def test_body(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs
    expected = rotary_reference(case.attributes, inputs, np.float64)
    (y,) = run_body(ROTARY, case.attributes, list(inputs.values()))
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= limits(inputs, expected)).all()
