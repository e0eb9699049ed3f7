# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's function body on ONNX Runtime, over the table of cases."""

from __future__ import annotations

import pytest

from fastmmoe.exporter.ops import ATTENTION
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case, make_inputs
from tests.support.attention_checks import DTYPES, check_outputs
from tests.support.operator_bodies import run_body


@pytest.mark.parametrize("case", [*SMALL, *OTHER_WIDTHS, LARGE[-1]], ids=lambda case: case.name)
def test_equals_the_reference(case: Case) -> None:
    inputs = make_inputs(case)
    check_outputs(case, inputs, run_body(ATTENTION, case.attributes, list(inputs.values())))


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")])
@pytest.mark.parametrize("case", [SMALL[5], SMALL[10], SMALL[15]], ids=lambda case: case.name)
def test_equals_the_reference_in_16_bits(case: Case, types: tuple[str, str]) -> None:
    inputs = make_inputs(case, dtype=DTYPES[types[0]], cache_dtype=DTYPES[types[1]])
    check_outputs(case, inputs, run_body(ATTENTION, case.attributes, list(inputs.values())))
