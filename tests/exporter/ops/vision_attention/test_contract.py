# SPDX-License-Identifier: Apache-2.0
"""What the contract of FmmVisionAttention refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops.contract import Attributes
from fastmmoe.exporter.ops.vision_attention.contract import VISION_ATTENTION, check_vision_attention_inputs
from tests.support.vision_attention_cases import REFUSED


@pytest.mark.parametrize(("shape", "message"), REFUSED)
def test_shapes_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    attributes: Attributes = {"scale": 1.0, "compute": "float32"}
    with pytest.raises(ValueError, match=message):
        check_vision_attention_inputs(attributes, {"qkv": np.zeros(shape, np.float32)})


def test_other_types_to_compute_in_are_refused() -> None:
    with pytest.raises(ValueError, match="attribute compute is 'float16', supported are"):
        VISION_ATTENTION.check_attributes({"scale": 1.0, "compute": "float16"})
