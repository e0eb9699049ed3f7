# SPDX-License-Identifier: Apache-2.0
"""Native FmmLinear in ONNX Runtime against the NumPy reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from tests.support.linear_cases import IN_ROWS, PACKINGS, SIZES, linear_case
from tests.support.native_node import NativeNode, run_native
from tests.support.operators import assert_close

OP = "FmmLinear"
ROUNDED = {"bf16": 2.0**-8, "int8": 0.015, "int4": 0.015}
"""Of the output's norm: what rows lose that are rounded to bfloat16, or to 127 steps either way of 0 in each group."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_packed(packing: LinearPacking, size: str) -> None:
    inputs, attributes = linear_case(packing, size, has_bias=size != "whole")
    expected = linear_reference(inputs, attributes)
    assert_close(NativeNode(OP, inputs, attributes, is_exact=True)(inputs)[0], expected)
    (y,) = run_native(OP, inputs, attributes)
    if expected.size:
        assert np.linalg.norm(y - expected) <= ROUNDED[packing.weight_format] * np.linalg.norm(expected)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("size", ["odd", "many rows"])
@pytest.mark.parametrize("packing", [None, PACKINGS[0], PACKINGS[1]], ids=str)
def test_what_follows_the_products(
    packing: LinearPacking | None, size: str, activation: str, has_residual: bool
) -> None:
    inputs, attributes = linear_case(packing, size, activation=activation, has_residual=has_residual)
    (y,) = NativeNode(OP, inputs, attributes, is_exact=True)(inputs)
    assert_close(y, linear_reference(inputs, attributes))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activations_from_end_to_end(activation: str) -> None:
    """Products that are the bias: from where GELU is 0 to where it is x, and infinities that stay with their column."""
    inputs, attributes = linear_case(None, "many rows", activation=activation)
    x = np.r_[np.linspace(-12, 12, 30), -1e30, 0, 1e30].astype(np.float32)
    inputs |= {"weight": np.zeros_like(inputs["weight"]), "bias": x}
    (y,) = run_native(OP, inputs, attributes)
    np.testing.assert_allclose(y[7], linear_reference(inputs, attributes)[7], rtol=1e-6, atol=5e-7)
    np.testing.assert_array_equal(y[7, -2:], x[-2:])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_as_they_are(size: str, dtype: Any) -> None:
    inputs, attributes = linear_case(None, size, weight_dtype=dtype)
    (y,) = run_native(OP, inputs, attributes)
    assert_close(y, linear_reference(inputs, attributes))


@pytest.mark.parametrize("size", ["whole", "words"])
@pytest.mark.parametrize("packing", IN_ROWS, ids=str)
def test_in_rows(packing: LinearPacking, size: str) -> None:
    inputs, attributes = linear_case(packing, size, activation="gelu", has_residual=True)
    (y,) = run_native(OP, inputs, attributes)
    assert_close(y, linear_reference(inputs, attributes))


@pytest.mark.parametrize("packing", [PACKINGS[0], PACKINGS[6], PACKINGS[-1]], ids=str)
def test_results_depend_on_the_row_alone(packing: LinearPacking) -> None:
    """Bit for bit, whatever the number of threads and the rows beside it."""
    inputs, attributes = linear_case(packing, "many rows")
    results = [NativeNode(OP, inputs, attributes, threads)(inputs)[0] for threads in (1, 2, 4)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    node = NativeNode(OP, inputs, attributes)
    for rows in (slice(0, 1), slice(7, 9), slice(100, 171)):
        (part,) = node(inputs | {"x": inputs["x"][rows]})
        np.testing.assert_array_equal(part, results[0][rows])


@pytest.mark.parametrize("packing", [PACKINGS[0], PACKINGS[1], PACKINGS[-1]], ids=str)
def test_nan_spoils_its_row_only(packing: LinearPacking) -> None:
    inputs, attributes = linear_case(packing, "odd")
    (clean,) = run_native(OP, inputs, attributes)
    inputs["x"][2, 3] = np.nan
    (y,) = run_native(OP, inputs, attributes)
    assert np.isnan(y[2]).all()
    np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"group_size": 0}, "attribute group_size is 0 with weight_format int8, expected 0 with float only"),
    ({"weight_layout": "logical"}, "weight is [3, 18, 16, 4], expected rank 2: [N, K/p]"),
    ({"out_features": 50}, "weight is [3, 18, 16, 4], expected [N/n, K/w, n, b] = [4, 18, 16, 4]"),
    ({"weight_format": "int4"}, "weight is [3, 18, 16, 4], expected [N/n, K/w, n, b] = [3, 9, 16, 4]"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    inputs, attributes = linear_case(PACKINGS[1], "odd", has_bias=False)
    with pytest.raises(Exception, match=r"FmmLinear: " + message.replace("[", r"\[")):
        run_native(OP, inputs, attributes | changes)


def test_refused_types() -> None:
    inputs, attributes = linear_case(IN_ROWS[1], "odd", has_bias=False)
    with pytest.raises(Exception, match="FmmLinear: weight is float16, expected int8 with weight_format int8"):
        run_native(OP, inputs | {"weight": inputs["weight"].astype(np.float16)}, attributes)
    inputs, attributes = linear_case(PACKINGS[0], "odd", has_bias=False)
    with pytest.raises(Exception, match="FmmLinear: weight is float16, expected bfloat16 with weight_layout tiles"):
        run_native(OP, inputs | {"weight": inputs["weight"].astype(np.float16)}, attributes)
    inputs, attributes = linear_case(IN_ROWS[-1], "words", has_bias=False)
    wrong = inputs | {"x": inputs["x"][:, 4:], "weight": inputs["weight"][:, 2:]}
    with pytest.raises(Exception, match="FmmLinear: K is 68, expected a multiple of 8 with weight_format int4"):
        run_native(OP, wrong, attributes)
