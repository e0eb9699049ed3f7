# SPDX-License-Identifier: Apache-2.0
"""One call of the exporter: inputs in order, dimensions by name, parameters without values, outputs that are there."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastmmoe.exporter.graph.tracing import GraphInput, export_module
from fastmmoe.exporter.models.attention import GroupedAttention
from fastmmoe.exporter.pruning.tokens import Tokens

INT32, FLOAT = torch.int32, torch.float32


class Pair(nn.Module):
    """A linear layer, and a sum of two vectors that have nothing to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": inputs["a"] + inputs["b"], "y": self.linear(inputs["x"])}


@pytest.fixture(scope="module")
def exported() -> tuple[ir.Model, list[str]]:
    groups = [
        [GraphInput("x", ("T", 4), FLOAT)],
        [GraphInput("a", ("V",), FLOAT), GraphInput("b", ("V",), FLOAT)],
    ]
    with torch.device("meta"):
        module = Pair()
    return export_module(module, groups, lambda size: {"T": 1, "V": 0}[size], opset=23)


def test_inputs_and_outputs_are_in_order(exported: tuple[ir.Model, list[str]]) -> None:
    model, names = exported
    assert names == ["sum", "y"]
    shapes = [[d if isinstance(d, int) else d.value for d in value.shape or ()] for value in model.graph.inputs]
    assert shapes == [["T", 4], ["V"], ["V"]]
    outputs = [[d if isinstance(d, int) else d.value for d in value.shape or ()] for value in model.graph.outputs]
    assert outputs == [["V"], ["T", 3]]


def test_parameters_keep_their_names(exported: tuple[ir.Model, list[str]]) -> None:
    model, _ = exported
    assert {"linear.weight", "linear.bias"} <= {*model.graph.initializers}
    assert model.opset_imports[""] == 23


class Attending(nn.Module):
    """A layer's attention without a watch, and so without the logarithms that one needs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = GroupedAttention(8, 2, 1, 4)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = Tokens(
            inputs["sequence_ids"],
            inputs["sequence_offsets"],
            inputs["positions"],
            inputs["cos"],
            inputs["sin"],
            inputs["lengths"],
            None,
        )
        y = self.attention(inputs["x"], tokens, [inputs["key"], inputs["value"]], [])
        return {"y": y.output, "key": y.present[0], "value": y.present[1]}


def test_operators_have_the_outputs_of_their_attributes() -> None:
    inputs = [
        GraphInput("x", ("T", 8), FLOAT),
        *(GraphInput(name, ("T",), INT32) for name in ("sequence_ids", "positions")),
        GraphInput("sequence_offsets", ("offsets",), INT32),
        *(GraphInput(name, ("T", 1, 2), FLOAT) for name in ("cos", "sin")),
        GraphInput("lengths", ("B",), INT32),
        *(GraphInput(name, ("B", 1, "C", 4), FLOAT) for name in ("key", "value")),
    ]
    with torch.device("meta"):
        module = Attending()
    model, names = export_module(module, [inputs], lambda size: 2 if size == "offsets" else 1, opset=23)
    (node,) = (node for node in model.graph if node.op_type == "FmmAttention")
    assert names == ["y", "key", "value"] and len(node.outputs) == 3
    assert not model.functions
