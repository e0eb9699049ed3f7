# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of FmmVisionAttention: cases whose result is known."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops.contract import Attributes
from fastmmoe.exporter.ops.vision_attention.reference import vision_attention_reference
from tests.support.vision_attention_cases import REFUSED


def test_a_softmax_over_all_rows() -> None:
    """A row whose scores are all equal gets the mean of the values; one great score gets its value."""
    qkv = np.random.default_rng(0).standard_normal((1, 6, 3, 1, 4)).astype(np.float32)
    qkv[0, 0, 0], qkv[0, :, 1], qkv[0, 3, 1] = 0, 0, 1
    qkv[0, 1, 0] = 50
    (output,) = vision_attention_reference({"scale": 1.0, "compute": "float32"}, {"qkv": qkv})
    np.testing.assert_allclose(output[0, 0, 0], qkv[0, :, 2, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(output[0, 1, 0], qkv[0, 3, 2, 0], atol=1e-6)


@pytest.mark.parametrize(("shape", "message"), REFUSED)
def test_shapes_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    attributes: Attributes = {"scale": 1.0, "compute": "float32"}
    with pytest.raises(ValueError, match=message):
        vision_attention_reference(attributes, {"qkv": np.zeros(shape, np.float32)})
