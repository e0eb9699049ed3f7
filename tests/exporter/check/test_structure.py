# SPDX-License-Identifier: Apache-2.0
"""The structure of written graphs: each must be valid, and hold all experts of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from fastmmoe.exporter.check.structure import CheckFailed, check_structure
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.schema import register_schemas
from fastmmoe.runtime.bundle.manifest import GRAPHS, graph_file
from tests.support.operator_bodies import body_model
from tests.support.operators import moe_attributes


@pytest.fixture(autouse=True)
def _schemas() -> None:
    register_schemas()


def model_of(*experts: int) -> Any:
    """A model whose layers, numbered from 1, have so many experts each."""
    moe = SimpleNamespace(num_experts=experts[0])
    return SimpleNamespace(config=SimpleNamespace(moe=moe, moe_layers=tuple(range(1, 1 + len(experts)))))


def moe_graph(gate_up: int, down: int | None = None) -> onnx.ModelProto:
    """A graph of one node with so many experts."""
    graph = body_model(SPARSE_MOE, moe_attributes(), {"F": "float", "W": "float"}, with_function=False)
    experts = {"router_logits": gate_up, "correction_bias": gate_up, "gate_up": gate_up, "down": down or gate_up}
    for value in graph.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "E":
                dimension.dim_value = experts[value.name]
    return graph


def write(directory: Path, language_model: onnx.ModelProto, *, portable: bool = True) -> Path:
    for name in GRAPHS:
        onnx.save(language_model, directory / graph_file(name))
    if portable:
        onnx.save(language_model, directory / graph_file("language_model", portable=True))
    return directory


def test_experts_are_counted(tmp_path: Path) -> None:
    found = check_structure(write(tmp_path, moe_graph(8)), model_of(8), portable=True)
    assert found == "8 experts in 1 MoE layers, all in the graph"


@pytest.mark.parametrize(
    ("model", "expected"), [(model_of(7), "[7]"), (model_of(8, 8), "[8, 8]"), (model_of(9), "[9]")]
)
def test_experts_that_are_missing_or_too_many(tmp_path: Path, model: Any, expected: str) -> None:
    with pytest.raises(CheckFailed) as raised:
        check_structure(write(tmp_path, moe_graph(8)), model, portable=True)
    assert str(raised.value) == f"experts by MoE layer in the graph: [8], in the checkpoint: {expected}"


def test_weights_of_different_numbers_of_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker would find it as well, if the operator's schema were not there."""
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    with pytest.raises(CheckFailed, match=r": gate_up of 8 experts, down of 7$"):
        check_structure(write(tmp_path, moe_graph(8, 7)), model_of(8), portable=True)


@pytest.mark.parametrize(
    "file", ["vision.onnx", "embedding.onnx", "language_model.onnx", "language_model.portable.onnx"]
)
def test_every_graph_is_checked(tmp_path: Path, file: str) -> None:
    write(tmp_path, moe_graph(8))
    broken = moe_graph(8)
    del broken.graph.node[0].attribute[0]
    onnx.save(broken, tmp_path / file)
    with pytest.raises(onnx.checker.ValidationError):
        check_structure(tmp_path, model_of(8), portable=True)


def test_shapes_are_inferred_strictly(tmp_path: Path) -> None:
    wrong = moe_graph(8)
    wrong.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    wrong.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        check_structure(write(tmp_path, wrong), model_of(8), portable=True)


def test_a_target_without_portable_graph_has_none_to_check(tmp_path: Path) -> None:
    write(tmp_path, moe_graph(8), portable=False)
    assert check_structure(tmp_path, model_of(8), portable=False).startswith("8 experts")
    with pytest.raises(onnx.checker.ValidationError, match=r"language_model.portable.onnx"):
        check_structure(tmp_path, model_of(8), portable=True)


def test_experts_of_another_layer(tmp_path: Path) -> None:
    model = moe_graph(8)
    model.graph.node[0].name = "layers.1.mlp.experts/FmmSparseMoE"
    for value in model.graph.input:
        if value.name in ("gate_up", "down"):
            value.name = f"layers.{1 if value.name == 'gate_up' else 11}.mlp.experts.{value.name}"
    model.graph.node[0].input[5:7] = ["layers.1.mlp.experts.gate_up", "layers.11.mlp.experts.down"]
    with pytest.raises(CheckFailed) as raised:
        check_structure(write(tmp_path, model), model_of(8), portable=True)
    assert str(raised.value).endswith("takes the weights layers.11.mlp.experts.down, expected some of layers.1")
