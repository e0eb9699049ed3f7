# SPDX-License-Identifier: Apache-2.0
"""Traced graphs keep no weights: each is read when it is written, and one at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from fastmmoe.exporter.graph.tracing import GraphInput, trace

WIDTH, HIDDEN = 96, 160
MATRICES = ("fc1.weight", "fc2.weight")


class Mlp(nn.Module):
    """Two linear layers over [T, rows, WIDTH], as in a vision tower: their graph transposes the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": self.fc2(self.fc1(inputs["x"]).relu())}


class Weights:
    """Values by name. `loaded` has the names in the order of reading, `most_alive` the greatest number of matrices
    in memory at once; every load makes a new tensor."""

    def __init__(self, module: nn.Module) -> None:
        torch.manual_seed(0)
        self.values = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
        self.loaded: list[str] = []
        self.alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.most_alive = 0

    def load(self, name: str) -> torch.Tensor:
        self.loaded.append(name)
        value = self.values[name].clone()
        if name in MATRICES:
            self.alive.add(value.untyped_storage())
            self.most_alive = max(self.most_alive, len(self.alive))
        return value


@pytest.fixture(scope="module")
def traced() -> tuple[ir.Model, Weights]:
    with torch.device("meta"):
        module = Mlp()
    weights = Weights(module)
    model = trace(module, [GraphInput("x", ("T", 4, WIDTH), torch.float32)], weights.load, name="mlp", opset=23)
    return model, weights


def test_no_matrix_is_read_while_tracing(traced: tuple[ir.Model, Weights]) -> None:
    model, weights = traced
    assert not [name for name in weights.loaded if name in MATRICES]
    large = [v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size > 1024]
    assert len(large) == len(MATRICES)
    assert all(isinstance(value.const_value, ir.LazyTensor) for value in large)


def test_transposed_matrices_are_written_one_at_a_time(traced: tuple[ir.Model, Weights], tmp_path: Path) -> None:
    """The graph has no Transpose left; its matrices are the parameters', transposed, each read once."""
    model, weights = traced
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu", "MatMul"]
    before = len(weights.loaded)
    ir.save(model, tmp_path / "mlp.onnx", external_data="mlp.data", size_threshold_bytes=0)
    assert sorted(name for name in weights.loaded[before:] if name in MATRICES) == sorted(MATRICES)
    assert weights.most_alive == 1
    saved = ir.load(tmp_path / "mlp.onnx").graph
    products = [node for node in saved if node.op_type == "MatMul"]
    for node, name in zip(products, MATRICES, strict=True):
        matrix = node.inputs[1]
        assert matrix is not None and matrix.const_value is not None
        assert torch.equal(torch.from_numpy(matrix.const_value.numpy().copy()), weights.values[name].T)
