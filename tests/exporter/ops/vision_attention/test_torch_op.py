# SPDX-License-Identifier: Apache-2.0
"""The torch op of FmmVisionAttention against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops import VISION_ATTENTION, vision_attention_reference
from fastmmoe.exporter.ops.vision_attention import torch_op as _op  # noqa: F401  (registers the operator)
from tests.support.vision_attention_cases import CASES, REFUSED


@pytest.mark.parametrize("name", CASES)
def test_torch_op(name: str) -> None:
    attributes, inputs = CASES[name].attributes("bfloat16"), CASES[name].inputs
    qkv = torch.from_numpy(inputs["qkv"])
    found = torch.ops.fastmmoe.vision_attention(qkv, VISION_ATTENTION.encode(attributes))
    expected = vision_attention_reference(attributes, inputs, np.float64)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_fake_has_shape_and_type() -> None:
    qkv = torch.empty((2, 5, 3, 4, 8), dtype=torch.float16, device="meta")
    attributes = VISION_ATTENTION.encode({"scale": 1.0, "compute": "float32"})
    found = torch.ops.fastmmoe.vision_attention(qkv, attributes)
    assert (found.shape, found.dtype) == ((2, 5, 4, 8), torch.float16)


@pytest.mark.parametrize(("shape", "message"), REFUSED)
def test_shapes_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.fastmmoe.vision_attention(
            torch.zeros(shape), VISION_ATTENTION.encode({"scale": 1.0, "compute": "float32"})
        )
