# SPDX-License-Identifier: Apache-2.0
"""The contract of FmmSparseMoE: what it allows, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.contract import check_moe_inputs
from tests.support.moe_layouts import LAYOUTS, Kind, broken_words, stored_case
from tests.support.operators import moe_attributes, moe_inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight_format": "fp8", "group_size": 32, "zero_points": 1},
            "attribute zero_points is 1 with weight_format fp8, expected 0",
        ),
        ({"weight_format": "int8"}, "attribute group_size is 0 with weight_format int8, expected 0 with float only"),
        ({"group_size": 32}, "attribute group_size is 32 with weight_format float, expected 0 with float only"),
        ({"weight_format": "int4", "group_size": 16}, r"attribute group_size is 16, supported are \[0, 32, 64, 128\]"),
        ({"zero_points": 1}, "attribute zero_points is 1 with weight_format float, expected 0"),
        (
            {"weight_format": "int2"},
            r"attribute weight_format is 'int2', supported are \['float', 'int8', 'int4', 'fp8'\]",
        ),
        (
            {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 3},
            "attribute topk_group is 3, expected at most n_group = 2",
        ),
    ],
)
def test_attributes_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FmmSparseMoE: {message}$"):
        SPARSE_MOE.check_attributes(moe_attributes(**changes))


@pytest.mark.parametrize("letter", ["H", "I"])
def test_rows_of_int4_are_whole_words(letter: str) -> None:
    inputs, attributes = broken_words(letter)
    message = f"{letter} is 36, expected a multiple of 8 with weight_format int4 and weight_layout logical"
    with pytest.raises(ValueError, match=f"^FmmSparseMoE: {message}$"):
        check_moe_inputs(attributes, inputs)


def test_inputs_of_the_contract() -> None:
    for visual_top_k in (1, 6):
        check_moe_inputs(moe_attributes(), moe_inputs(visual_top_k=visual_top_k))
    check_moe_inputs(moe_attributes(top_k=16), moe_inputs(E=16))
    check_moe_inputs(moe_attributes(expert_bias=1), moe_inputs(expert_bias=True, T=0, visual=np.arange(0)))
    check_moe_inputs(moe_attributes(topk_method="noaux_tc", n_group=8), moe_inputs())


@pytest.mark.parametrize(
    ("attributes", "changes", "message"),
    [
        ({}, {"visual_top_k": np.array([0], np.int32)}, "visual_top_k is 0, expected 1 to top_k = 6"),
        ({}, {"visual_top_k": np.array([7], np.int32)}, "visual_top_k is 7, expected 1 to top_k = 6"),
        ({}, {"visual_index": np.array([3, 17], np.int32)}, r"visual_index\[1\] is 17, expected 0 to 16"),
        ({}, {"visual_index": np.arange(18, dtype=np.int32)}, "V is 18, expected at most T = 17"),
        ({}, {"down": np.zeros((16, 24, 21), np.float32)}, r"down is .*, expected \[E, H, I/p\] = \[16, 24, 20\]"),
        (
            {},
            {"gate_up": np.zeros((16, 41, 24), np.float32)},
            r"gate_up is .*, expected \[E, 2I, H/p\] = \[16, 2I, 24\]",
        ),
        ({"topk_method": "noaux_tc", "n_group": 5}, {}, "n_group is 5, expected a divisor of E = 16"),
        ({"top_k": 16}, {"E": 12}, "top_k is 16, expected at most E = 12"),
        ({"expert_bias": 1}, {}, "7 inputs, expected with these attributes are 9: hidden_states, .*, down_bias"),
    ],
)
def test_inputs_outside_the_contract(attributes: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    E = changes.get("E", 16)
    inputs = moe_inputs(E=E) | {name: value for name, value in changes.items() if name != "E"}
    with pytest.raises(ValueError, match=f"^FmmSparseMoE: {message}$"):
        check_moe_inputs(moe_attributes(**attributes), inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("scale", np.nan, "scale has nan, expected finite scales"),
        ("scale", -np.inf, "scale has -inf, expected finite scales"),
        ("zero", 16, "zero has 16, expected 0 to 15 with int4"),
        ("zero", -1, "zero has -1, expected 0 to 15 with int4"),
    ],
)
def test_what_packed_weights_may_have_beside_them(layout: str, part: str, value: float, message: str) -> None:
    """Scales of 0 and below are numbers as others; a zero of int8 may be any integer that int8 has."""
    inputs, attributes = stored_case(Kind("int4", 32, 1), layout)
    inputs["down_scale"].flat[-1], inputs["gate_up_scale"].flat[0] = 0, -1
    check_moe_inputs(attributes, inputs)
    inputs[f"down_{part}"].flat[1] = value
    with pytest.raises(ValueError, match=f"^FmmSparseMoE: down_{message}$"):
        check_moe_inputs(attributes, inputs)
    inputs, attributes = stored_case(Kind("int8", 32, 1), layout)
    inputs["down_zero"].flat[:2] = -128, 127
    check_moe_inputs(attributes, inputs)


def test_weights_that_are_not_of_their_format() -> None:
    integers = moe_inputs() | {name: np.zeros(moe_inputs()[name].shape, np.int8) for name in ("gate_up", "down")}
    message = "gate_up is int8, expected float, float16 or bfloat16 with weight_format float"
    with pytest.raises(ValueError, match=f"^FmmSparseMoE: {message}$"):
        check_moe_inputs(moe_attributes(), integers)
