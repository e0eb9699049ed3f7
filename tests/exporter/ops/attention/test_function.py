# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's function body on ONNX Runtime, over the table of cases."""

from __future__ import annotations

import onnxruntime
import pytest

from fastmmoe.exporter.ops import ATTENTION
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case, make_inputs
from tests.support.attention_checks import DTYPES, check_outputs
from tests.support.native_node import to_array, to_ort_value
from tests.support.operator_bodies import ONNX_NAMES, body_model, run_body


@pytest.mark.parametrize("case", [*SMALL, *OTHER_WIDTHS, LARGE[-1]], ids=lambda case: case.name)
def test_equals_the_reference(case: Case) -> None:
    inputs = make_inputs(case)
    check_outputs(case, inputs, run_body(ATTENTION, case.attributes, list(inputs.values())))


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")])
@pytest.mark.parametrize("case", [SMALL[5], SMALL[10], SMALL[15]], ids=lambda case: case.name)
def test_equals_the_reference_in_16_bits(case: Case, types: tuple[str, str]) -> None:
    inputs = make_inputs(case, dtype=DTYPES[types[0]], cache_dtype=DTYPES[types[1]])
    check_outputs(case, inputs, run_body(ATTENTION, case.attributes, list(inputs.values())))


@pytest.mark.parametrize("cache", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [SMALL[4], SMALL[6], SMALL[10], SMALL[16]], ids=lambda case: case.name)
def test_caches_may_be_written_where_they_are(case: Case, cache: str) -> None:
    """As the runtime binds a portable graph's: each cache is an input and the output that may have its address."""
    model = body_model(ATTENTION, case.attributes, {"F": "float", "S": ONNX_NAMES[cache]})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, binding = make_inputs(case, cache_dtype=DTYPES[cache]), session.io_binding()
    values = {name: to_ort_value(value) for name, value in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for tensor in ATTENTION.outputs_for(case.attributes):
        if tensor.alias is None:
            binding.bind_output(tensor.name, "cpu")
        else:
            binding.bind_ortvalue_output(tensor.name, values[tensor.alias])
    session.run_with_iobinding(binding)
    outputs = binding.get_outputs()
    check_outputs(case, inputs, [to_array(value) for value in outputs])
    for tensor, output in zip(ATTENTION.outputs_for(case.attributes), outputs, strict=True):
        assert tensor.alias is None or output.data_ptr() == values[tensor.alias].data_ptr(), tensor.name
