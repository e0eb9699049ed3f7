# SPDX-License-Identifier: Apache-2.0
"""What FmmLinear's contract refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import LINEAR
from fastmmoe.runtime.types import Array
from tests.support.linear_cases import IN_ROWS, PACKINGS, linear_case, logical_attributes

INT8 = PACKINGS[1].attributes(35, has_bias=True)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (INT8 | {"group_size": 0}, "attribute group_size is 0 with weight_format int8, expected 0 with float only"),
        (
            logical_attributes(35, has_bias=True) | {"zero_points": 1},
            "attribute zero_points is 1 with weight_format float, expected 0",
        ),
        (INT8 | {"group_size": 48}, "attribute group_size is 48, supported are [0, 32, 64, 128]"),
        (INT8 | {"out_features": 0}, "attribute out_features is 0, expected 1 to 1048576"),
    ],
)
def test_attributes(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FmmLinear: {re.escape(message)}$"):
        LINEAR.check_attributes(attributes)


def refused(inputs: dict[str, Array], attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FmmLinear: {re.escape(message)}"):
        LINEAR.check_inputs(attributes, inputs)


def test_weights_of_another_format() -> None:
    inputs, attributes = linear_case(PACKINGS[1], "odd")
    tiles = np.zeros((3, 18, 16, 2), np.int8)
    refused(inputs | {"weight": tiles}, attributes, "weight is [3, 18, 16, 2], expected [N/n, K/w, n, b] = ")
    inputs, attributes = linear_case(PACKINGS[0], "odd")
    message = "weight is int8, expected float, float16 or bfloat16 with weight_format float"
    refused(inputs | {"weight": inputs["weight"].astype(np.int8)}, attributes, message)
    message = "weight is float16, expected bfloat16 with weight_layout tiles"
    refused(inputs | {"weight": inputs["weight"].astype(np.float16)}, attributes, message)
    inputs, attributes = linear_case(IN_ROWS[1], "odd")
    message = "weight is float16, expected int8 with weight_format int8"
    refused(inputs | {"weight": inputs["weight"].astype(np.float16)}, attributes, message)


def test_rows_of_int4_are_whole_words() -> None:
    inputs, attributes = linear_case(IN_ROWS[-1], "words")
    wrong = {"x": inputs["x"][:, 4:], "weight": inputs["weight"][:, 2:]}
    refused(
        inputs | wrong,
        attributes,
        "K is 68, expected a multiple of 8 with weight_format int4 and weight_layout logical",
    )


def test_floats_have_one_type() -> None:
    inputs, attributes = linear_case(IN_ROWS[1], "odd", dtype=np.float16)
    wrong = inputs | {"bias": inputs["bias"].astype(np.float32)}
    refused(wrong, attributes, "bias is float, expected float16 as the other tensors of type F")
