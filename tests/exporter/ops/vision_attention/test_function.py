# SPDX-License-Identifier: Apache-2.0
"""The function body of FmmVisionAttention against the reference in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import VISION_ATTENTION, vision_attention_reference
from fastmmoe.runtime.types import Array
from tests.support.operator_bodies import run_body
from tests.support.vision_attention_cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_body(name: str) -> None:
    """It is exact with either type to compute in."""
    attributes, inputs = CASES[name].attributes("bfloat16"), CASES[name].inputs
    (body,) = run_body(VISION_ATTENTION, attributes, [inputs["qkv"]])
    np.testing.assert_allclose(body, vision_attention_reference(attributes, inputs, np.float64)[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bits_are_rounded_once(dtype: type) -> None:
    """At the end: one unit in the last place of the type, whose sums are float32."""
    case = CASES["internvit"]
    qkv: Array = case.inputs["qkv"].astype(dtype)
    attributes = case.attributes("float32")
    expected = vision_attention_reference(attributes, {"qkv": qkv}, np.float64)[0]
    (body,) = run_body(VISION_ATTENTION, attributes, [qkv])
    limit = float(ml_dtypes.finfo(dtype).eps) * np.abs(expected) + 1e-6
    assert (np.abs(body.astype(np.float64) - expected) <= limit).all()
