# SPDX-License-Identifier: Apache-2.0
"""Parameters in written graphs: found by their records, mapped in their own order of axes, never beyond the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fastmmoe.exporter.check.stored import Initializer, StoredWeights, initializers_of
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.graph.weights import parameter_tensor
from fastmmoe.runtime.bundle.manifest import graph_file, weights_file
from fastmmoe.runtime.bundle.storage import ExpertTensor

GRAPH = "vision"
VALUES = np.arange(12, dtype=np.float32)


def external(name: str, kind: int, shape: list[int], offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", weights_file(GRAPH)), ("offset", offset), ("length", 4 * int(np.prod(shape)))):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return tensor


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A graph with a transposed tensor and a vector in its file of weights, and a scalar within; the file's rest."""
    tensors = [
        external("a/Transpose", TensorProto.FLOAT, [3, 2], 0),
        external("b", TensorProto.BFLOAT16, [4], 24),
        external("beyond", TensorProto.FLOAT, [4], 40),
        numpy_helper.from_array(np.array(7, np.float32), "c"),
    ]
    graph = helper.make_graph([], GRAPH, [], [], tensors)
    onnx.save(helper.make_model(graph), str(tmp_path / graph_file(GRAPH)))
    (tmp_path / weights_file(GRAPH)).write_bytes(VALUES.tobytes())
    return tmp_path


def test_parameters_are_found_by_their_record() -> None:
    tensor = parameter_tensor("a", ir.DataType.FLOAT, [2, 3], lambda name: torch.zeros(2, 3))
    values = [
        ir.val("a/Transpose", const_value=tensor.permuted([1, 0], "a/Transpose")),
        ir.val("b", const_value=parameter_tensor("b", ir.DataType.FLOAT, [2], lambda name: torch.zeros(2))),
        ir.val("c", const_value=ir.tensor([1.0])),
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, name="x", opset_imports={"": 20})
    found = initializers_of(ir.Model(graph, ir_version=10))
    assert found == {"a": Initializer("a/Transpose", (1, 0)), "b": Initializer("b", None)}


def test_values_come_in_the_parameters_own_order(written: Path) -> None:
    weights = StoredWeights(written, GRAPH, {"a": Initializer("a/Transpose", (1, 0)), "b": Initializer("b", None)})
    assert torch.equal(weights.parameter("a"), torch.from_numpy(VALUES[:6].reshape(3, 2).T))
    expected = torch.from_numpy(VALUES).view(torch.bfloat16)[12:16]
    assert torch.equal(weights.parameter("b"), expected)
    assert weights.tensor("c") == 7
    assert (weights.has("a"), weights.has("c")) == (True, False)


def test_inputs_stand_in_the_file_too(written: Path) -> None:
    inputs = {"experts": ExpertTensor(dtype="float16", shape=(1, 2, 3), offset=8)}
    weights = StoredWeights(written, GRAPH, {"experts": Initializer("experts", None)}, inputs)
    expected = torch.from_numpy(VALUES).view(torch.float16)[4:10].view(1, 2, 3)
    assert torch.equal(weights.parameter("experts"), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "vision: has no tensor missing, which stands for a parameter"),
        ("beyond", "vision.data: beyond ends at byte 56, the file has 48 bytes"),
    ],
)
def test_what_is_not_there(written: Path, name: str, message: str) -> None:
    weights = StoredWeights(written, GRAPH, {name: Initializer(name, None)})
    with pytest.raises(CheckFailed, match=f"^{message}"):
        weights.parameter(name)
