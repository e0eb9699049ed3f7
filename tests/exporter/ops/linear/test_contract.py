# SPDX-License-Identifier: Apache-2.0
"""What FmmLinear's contract refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import LINEAR
from tests.support.linear_cases import PACKINGS, linear_case, logical_attributes

INT8 = PACKINGS[1].attributes(35, has_bias=True)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (INT8 | {"group_size": 0}, "attribute group_size is 0 with weight_format int8, expected 0 with float only"),
        (
            logical_attributes(35, has_bias=True) | {"zero_points": 1},
            "attribute zero_points is 1 with weight_format float, expected 0",
        ),
        (
            INT8 | {"weight_layout": "logical"},
            "attribute weight_layout is logical with weight_format int8, expected tiles",
        ),
        (INT8 | {"group_size": 48}, "attribute group_size is 48, supported are [0, 32, 64, 128]"),
        (INT8 | {"out_features": 0}, "attribute out_features is 0, expected 1 to 1048576"),
    ],
)
def test_attributes(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FmmLinear: {re.escape(message)}$"):
        LINEAR.check_attributes(attributes)


def test_tiles_of_another_format() -> None:
    inputs, attributes = linear_case(PACKINGS[1], "odd")
    wrong = inputs | {"weight_tiles": np.zeros((3, 18, 16, 2), np.int8)}
    with pytest.raises(ValueError, match=re.escape("weight_tiles is [3, 18, 16, 2], expected [N/o, K/p, o, c] = ")):
        LINEAR.check_inputs(attributes, wrong)
    inputs, attributes = linear_case(PACKINGS[0], "odd")
    wrong = inputs | {"weight_tiles": inputs["weight_tiles"].view(np.int16).astype(np.int8)}
    with pytest.raises(ValueError, match="weight_tiles is int8, expected bfloat16 with weight_format float"):
        LINEAR.check_inputs(attributes, wrong)
