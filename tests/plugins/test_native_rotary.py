# SPDX-License-Identifier: Apache-2.0
"""Native FmmRotary in ONNX Runtime against the NumPy reference in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from fastmmoe.exporter.ops import ROTARY, rotary_reference
from tests.support.instruction_sets import run_tests
from tests.support.native_node import NativeNode, run_native
from tests.support.rotary_cases import CASES, REFUSED, RotaryCase, limits, refused_inputs

OP = ROTARY.name


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs
    expected = rotary_reference(case.attributes, inputs, np.float64)
    (y,) = run_native(OP, inputs, case.attributes)
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= limits(inputs, expected)).all()


@pytest.mark.parametrize("name", ["several items", "no whole vector"])
def test_bits_do_not_depend_on_threads_and_other_rows(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs
    expected = run_native(OP, inputs, case.attributes)[0]
    for threads in (2, 4):
        np.testing.assert_array_equal(run_native(OP, inputs, case.attributes, threads)[0], expected)
    alone = {key: values if key == "norm" else values[2:3] for key, values in inputs.items()}
    np.testing.assert_array_equal(run_native(OP, alone, case.attributes)[0], expected[2:3])


def test_a_head_that_is_not_finite_concerns_itself_alone() -> None:
    case = CASES["several items"]
    inputs = case.inputs
    expected = run_native(OP, inputs, case.attributes)[0]
    inputs["x"][3, 1, 7] = np.nan
    found = run_native(OP, inputs, case.attributes)[0]
    assert np.isnan(found[3, 1]).all()
    found[3, 1] = expected[3, 1]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_other_instruction_sets(isa: str) -> None:
    run_tests(isa, f"{Path(__file__)}::test_case")


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_shapes_that_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    case = RotaryCase(3, 2, 4, True)
    node = NativeNode(OP, case.inputs, case.attributes)
    with pytest.raises(InvalidArgument, match=message):
        node(refused_inputs(shapes))


@pytest.mark.parametrize(("has_norm", "epsilon"), [(1, 0.0), (1, 1.5), (1, float("nan")), (0, 1e-6)])
def test_attributes_that_are_refused(has_norm: int, epsilon: float) -> None:
    inputs = RotaryCase(3, 2, 4, bool(has_norm)).inputs
    with pytest.raises(
        RuntimeException, match=f"FmmRotary: attribute epsilon is .* with has_norm {has_norm}, expected"
    ):
        NativeNode(OP, inputs, {"has_norm": has_norm, "epsilon": epsilon})
