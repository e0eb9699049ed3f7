# SPDX-License-Identifier: Apache-2.0
"""Native FmmVisionAttention in ONNX Runtime against the NumPy reference in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from fastmmoe.exporter.ops import VISION_ATTENTION, vision_attention_reference
from fastmmoe.runtime.types import Array
from tests.support.instruction_sets import run_tests
from tests.support.native_node import NativeNode, run_native
from tests.support.vision_attention_cases import CASES, VisionCase

OP = VISION_ATTENTION.name
COMPUTE = ("float32", "bfloat16")


def check(case: VisionCase, compute: str, found: Array) -> None:
    """float32 within 1e-5; bfloat16 within what rounding scores' operands and weights by 2^-9 can move."""
    inputs = case.inputs
    exact = vision_attention_reference(case.attributes("float32"), inputs, np.float64)[0]
    if compute == "float32":
        np.testing.assert_allclose(found, exact, atol=1e-5)
        return
    query, key, value = (np.abs(inputs["qkv"][:, :, part]).astype(np.float64) for part in range(3))
    # Query and key are rounded: so much a score moves, and its weight by that share.
    score = abs(case.scale) * np.einsum("btnd,bsnd->btns", query, key).max(-1) * 2.0**-8
    limit = (2 * score + 2.0**-7)[..., None] * value.max(1)[:, None]
    assert (np.abs(found - exact) <= limit + 1e-5).all()
    # As a whole it is far nearer.
    assert np.linalg.norm(found - exact) <= 0.02 * np.linalg.norm(exact) + 1e-5


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, compute: str) -> None:
    case = CASES[name]
    (found,) = run_native(OP, case.inputs, case.attributes(compute))
    check(case, compute, found)


@pytest.mark.parametrize("name", ["siglip", "internvit"])
def test_a_check_computes_in_float(name: str) -> None:
    case = CASES[name]
    (found,) = NativeNode(OP, case.inputs, case.attributes("bfloat16"), is_exact=True)(case.inputs)
    check(case, "float32", found)


@pytest.mark.parametrize("compute", COMPUTE)
def test_bits_do_not_depend_on_threads_and_other_tiles(compute: str) -> None:
    case = CASES["internvit"]
    expected = run_native(OP, case.inputs, case.attributes(compute))[0]
    for threads in (2, 4):
        found = run_native(OP, case.inputs, case.attributes(compute), threads)[0]
        np.testing.assert_array_equal(found, expected)
    alone = run_native(OP, {"qkv": case.inputs["qkv"][1:]}, case.attributes(compute))[0]
    np.testing.assert_array_equal(alone, expected[1:])


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_other_instruction_sets(isa: str) -> None:
    run_tests(isa, f"{Path(__file__)}::test_case")


def test_a_row_that_is_not_finite_concerns_its_tile_alone() -> None:
    case = CASES["internvit"]
    inputs = {"qkv": case.inputs["qkv"].copy()}
    inputs["qkv"][0, 7, 2] = np.nan
    found = run_native(OP, inputs, case.attributes("float32"))[0]
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], run_native(OP, case.inputs, case.attributes("float32"))[0][1])


def test_refusals_are_those_of_the_reference() -> None:
    attributes = CASES["one row"].attributes("float32")
    node = NativeNode(OP, CASES["one row"].inputs, attributes)
    for shape in ((1, 4, 2, 1, 8), (1, 4, 3, 8), (1, 0, 3, 1, 8), (1, 2, 3, 1, 1025)):
        inputs = {"qkv": np.zeros(shape, np.float32)}
        with pytest.raises(ValueError, match="FmmVisionAttention: ") as expected:
            vision_attention_reference(attributes, inputs)
        with pytest.raises(InvalidArgument) as refused:
            node(inputs)
        assert str(expected.value) in str(refused.value)
