# SPDX-License-Identifier: Apache-2.0
"""The helpers that function bodies are written with, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxscript import OpBuilder, build_function

from fastmmoe.exporter.ops import building
from fastmmoe.exporter.ops.functions import OPSET
from fastmmoe.runtime.types import Array

Body = Callable[[OpBuilder, ir.Value], Any]


def function_of(body: Body) -> ir.Function:
    return build_function(body, [building.value("x")], domain="toy", name="Toy", opset_imports={"": OPSET})


def names_of(body: Body) -> list[str]:
    """Names of the values that a body builds, without the builder's own mark."""
    return [str(node.outputs[0].name).removeprefix("v_") for node in function_of(body)]


def run(body: Body, x: Array) -> Array:
    """The body's output for one input."""
    function = function_of(body)
    given = ir.val("x", dtype=ir.DataType.from_numpy(x.dtype), shape=x.shape)
    node = ir.node("Toy", [given], domain="toy")
    graph = ir.Graph([given], node.outputs, nodes=[node], opset_imports={"": OPSET, "toy": 1}, name="g")
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
    model.graph.output[0].ClearField("type")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": x})
    result: Array = output
    return result


X = np.arange(12, dtype=np.int32).reshape(3, 4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (building.as_float, X.astype(np.float32)),
        (building.as_int, X.astype(np.int64)),
        (building.column, X[:, :, None]),
        (building.rows, np.array([3])),
        (lambda op, x: building.filled(op, op.Shape(x), True), np.ones((3, 4), bool)),
        (lambda op, x: building.filled(op, op.Shape(x), -1.5), np.full((3, 4), -1.5, np.float32)),
    ],
)
def test_what_each_computes(body: Body, expected: Array) -> None:
    output = run(body, X)
    assert (output.dtype, output.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(output, expected)


def test_a_literal_beside_a_float_needs_no_cast() -> None:
    """The builder would put a CastLike at every literal beside a value of an open type."""
    known = function_of(lambda op, x: op.Add(building.as_float(op, x), 1.0))
    unknown = function_of(lambda op, x: op.Add(x, 1.0))
    has_cast = ["CastLike" in [node.op_type for node in function] for function in (known, unknown)]
    assert has_cast == [False, True]


def test_names_tell_the_stage_that_a_value_is_built_in() -> None:
    def body(op: OpBuilder, x: ir.Value) -> Any:
        with building.stage(op, "first"):
            with building.stage(op, "inner"):
                a = op.Neg(x, _outputs=["a"])
            b = op.Abs(a, _outputs=["b"])
        return op.Neg(b, _outputs=["c"])

    assert names_of(body) == ["first.inner.a", "first.b", "c"]


def test_a_stage_ends_where_building_fails() -> None:
    def body(op: OpBuilder, x: ir.Value) -> Any:
        with pytest.raises(ValueError, match="no"), building.stage(op, "failed"):
            raise ValueError("no")
        return op.Neg(x, _outputs=["y"])

    assert names_of(body) == ["y"]


def test_a_value_declares_only_what_is_given() -> None:
    plain, full = building.value("a"), building.value("b", ir.DataType.INT64, 2)
    assert (plain.dtype, plain.shape) == (None, None)
    assert full.shape is not None
    assert (full.dtype, len(full.shape), full.shape.is_static()) == (ir.DataType.INT64, 2, False)
    scalar = building.value("c", rank=0)
    assert scalar.shape is not None and len(scalar.shape) == 0
