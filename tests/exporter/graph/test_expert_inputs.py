# SPDX-License-Identifier: Apache-2.0
"""The experts' weights as inputs of a written graph: all of them, whatever the format, and where their values are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fastmmoe.exporter.graph.expert_inputs import PARTS, make_expert_inputs
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.types import Array
from tests.support.operators import moe_attributes

E, H, I, GROUP = 2, 8, 4, 4  # noqa: E741
FORMATS: dict[str, tuple[dict[str, Any], Any]] = {
    "float16": ({}, np.float16),
    "bfloat16": ({}, ml_dtypes.bfloat16),
    "int8": ({"weight_format": "int8", "group_size": GROUP}, np.int8),
    "int4 with zeros": ({"weight_format": "int4", "group_size": GROUP, "zero_points": 1}, np.int8),
}
OTHERS = ("correction_bias", "gate_up_bias", "down_bias")


def weights_of(name: str, layer: int, attributes: dict[str, Any], dtype: Any) -> Array:
    """One of the node's constants, with values of its own."""
    packed = 2 if attributes["weight_format"] == "int4" else 1
    widths = {"gate_up": (2 * I, H), "down": (H, I)}
    rng = np.random.default_rng([layer, len(name)])
    if name == "correction_bias":
        return rng.random(E).astype(np.float32)
    rows, columns = next(size for weight, size in widths.items() if name.startswith(weight))
    if name.endswith("bias"):
        return rng.random((E, rows)).astype(np.float16)
    if name.endswith("scale"):
        return rng.random((E, rows, columns // GROUP)).astype(np.float16)
    columns = columns // GROUP if name.endswith("zero") else columns // packed
    return rng.integers(-8, 8, (E, rows, columns)).astype(dtype)


def write_model(path: Path, attributes: dict[str, Any], dtype: Any) -> dict[str, Array]:
    """A model with two layers of experts, one file of weights beside it; its constants."""
    names = [tensor.name for tensor in SPARSE_MOE.inputs_for(attributes)]
    called, constants = names[:4], names[4:]
    inputs = [ir.val(name, ir.DataType.FLOAT, ("T",)) for name in called]
    arrays: dict[str, Array] = {}
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    value = inputs[0]
    for layer in range(2):
        given = []
        for name in constants:
            full = f"layers.{layer}.mlp.experts.{name}"
            arrays[full] = weights_of(name, layer, attributes, dtype)
            tensor = ir.tensor(arrays[full], name=full)
            given.append(ir.val(full, tensor.dtype, arrays[full].shape, const_value=tensor))
        nodes.append(
            ir.node(SPARSE_MOE.name, [value, *inputs[1:], *given], attributes, domain="fastmmoe", name=f"n{layer}")
        )
        value, initializers = nodes[-1].outputs[0], [*initializers, *given]
        value.name = f"y{layer}"
    graph = ir.Graph(inputs, [value], nodes=nodes, initializers=initializers, name="g", opset_imports={"fastmmoe": 1})
    model = ir.Model(graph, ir_version=10)
    ir.save(model, path, external_data="language_model.data", size_threshold_bytes=0, alignment=64, align_threshold=0)
    return arrays


@pytest.mark.parametrize("bias", [0, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_every_large_input_of_a_node_becomes_one_of_the_graph(name: str, bias: int, tmp_path: Path) -> None:
    """Values are in the file at the place that is said, which is left as it was; other constants stay."""
    changes, dtype = FORMATS[name]
    attributes, path = moe_attributes(expert_bias=bias, **changes), tmp_path / "language_model.onnx"
    arrays = write_model(path, attributes, dtype)
    before, file = onnx.load(path, load_external_data=False), tmp_path / "language_model.data"
    data = file.read_bytes()
    found = make_expert_inputs(path)
    large = [full for full in arrays if full.rpartition(".")[2] in PARTS]
    assert {*found} == {*large} and len(found) == 2 * {"float": 2, "int8": 4, "int4": 6}[attributes["weight_format"]]
    assert file.read_bytes() == data
    for full, tensor in found.items():
        array = arrays[full]
        assert tensor == ExpertTensor(dtype=array.dtype.name, shape=array.shape, offset=tensor.offset)  # type: ignore[arg-type]
        assert data[tensor.offset : tensor.offset + tensor.bytes] == array.tobytes()
    after = onnx.load(path, load_external_data=False)
    assert after.graph.node == before.graph.node
    assert [value.name for value in after.graph.input] == [*(v.name for v in before.graph.input), *found]
    for value in after.graph.input[-len(found) :]:
        sizes = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        assert (sizes, kind) == (arrays[value.name].shape, arrays[value.name].dtype)
    left = {tensor.name for tensor in after.graph.initializer}
    assert left == {*arrays} - {*large} and {one.rpartition(".")[2] for one in left} <= {*OTHERS}
    model = onnx.load(path)
    for constant in model.graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(constant), arrays[constant.name])


def test_a_model_without_experts_has_none(tmp_path: Path) -> None:
    path = tmp_path / "language_model.onnx"
    x = ir.val("x", ir.DataType.FLOAT, (2,))
    node = ir.node("Relu", [x])
    ir.save(ir.Model(ir.Graph([x], node.outputs, nodes=[node], name="g", opset_imports={"": 20}), ir_version=10), path)
    assert make_expert_inputs(path) == {}
    assert [value.name for value in onnx.load(path).graph.input] == ["x"]
