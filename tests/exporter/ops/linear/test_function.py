# SPDX-License-Identifier: Apache-2.0
"""The function body of FmmLinear on stock onnxruntime against the NumPy reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import LINEAR, linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from tests.support.linear_cases import IN_ROWS, PACKINGS, SIZES, linear_case
from tests.support.operator_bodies import run_body
from tests.support.operators import assert_close


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_packed(packing: LinearPacking, size: str) -> None:
    after = {"odd": ("gelu", True), "many rows": ("gelu_tanh", False)}.get(size, ("none", False))
    inputs, attributes = linear_case(
        packing, size, has_bias=size != "whole", activation=after[0], has_residual=after[1]
    )
    (y,) = run_body(LINEAR, attributes, list(inputs.values()))
    assert_close(y, linear_reference(inputs, attributes))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("packing", IN_ROWS, ids=str)
def test_in_rows(packing: LinearPacking, dtype: Any) -> None:
    inputs, attributes = linear_case(packing, "words", activation="gelu", has_residual=True, dtype=dtype)
    (y,) = run_body(LINEAR, attributes, list(inputs.values()))
    assert_close(y, linear_reference(inputs, attributes))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_as_they_are(dtype: Any) -> None:
    inputs, attributes = linear_case(None, "odd", weight_dtype=dtype)
    (y,) = run_body(LINEAR, attributes, list(inputs.values()))
    assert_close(y, linear_reference(inputs, attributes))
