# SPDX-License-Identifier: Apache-2.0
"""The portable variant: the same nodes as the native graph, bodies of their attributes, and what the bodies compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from fastmmoe.exporter.check import portable
from fastmmoe.exporter.check.portable import BodyChecks, check_same_graph
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.export import _write_portable
from fastmmoe.exporter.ops import SPARSE_MOE, TOKEN_PRUNE
from fastmmoe.exporter.ops.contract import OpSpec
from fastmmoe.exporter.ops.functions import function_for
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.runtime.bundle.manifest import graph_file
from tests.support.operator_bodies import body_model
from tests.support.operators import MLERP, moe_attributes, prune_inputs

LIMIT = 1e-4


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A language model of one node, in both variants."""
    graph = body_model(SPARSE_MOE, moe_attributes(), {"F": "float", "W": "float"}, with_function=False)
    graph.graph.node[0].name = "layers.0/FmmSparseMoE"
    onnx.save(graph, str(tmp_path / graph_file("language_model")))
    _write_portable(tmp_path)
    return tmp_path


def other_body(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].name = "another"


def no_body(model: onnx.ModelProto) -> None:
    del model.functions[:]


def other_attribute(model: onnx.ModelProto) -> None:
    next(a for a in model.graph.node[0].attribute if a.name == "top_k").i += 1


def one_node_more(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", [model.graph.input[0].name], ["x"]))


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].doc_string = "another"


def test_a_variant_that_was_written_is_the_same_graph(written: Path) -> None:
    check_same_graph(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_body, "node layers.0/FmmSparseMoE has another body in the portable graph"),
        (no_body, "node layers.0/FmmSparseMoE has another body in the portable graph"),
        (other_attribute, "node layers.0/FmmSparseMoE is another one in the portable graph"),
        (one_node_more, "2 nodes in the portable graph, 1 in the other"),
        (other_input, "the portable graph has another input than the other"),
    ],
)
def test_variants_that_differ(change: Callable[[onnx.ModelProto], None], message: str, written: Path) -> None:
    path = written / graph_file("language_model", portable=True)
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(path))
    with pytest.raises(CheckFailed, match=f"^{message}"):
        check_same_graph(written)


def moe(rows: int, dtype: torch.dtype = torch.float32, visual_top_k: int = 2) -> Any:
    """One call of FmmSparseMoE on random numbers."""
    rng = torch.Generator().manual_seed(0)
    E, H, width = 4, 8, 8
    attributes = moe_attributes() | {"top_k": 2}
    return torch.ops.fastmmoe.sparse_moe(
        torch.randn(rows, H, generator=rng),
        torch.randn(rows, E, generator=rng),
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([visual_top_k], dtype=torch.int32),
        torch.zeros(E),
        torch.randn(E, 2 * width, H, generator=rng).to(dtype),
        torch.randn(E, H, width, generator=rng).to(dtype),
        [],
        SPARSE_MOE.encode(attributes),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bodies_compute_what_torch_does(dtype: torch.dtype) -> None:
    with BodyChecks(LIMIT) as checks:
        moe(5, dtype)
    assert checks.worst.keys() == {"FmmSparseMoE"}
    assert checks.worst["FmmSparseMoE"] < 1e-5


def test_one_of_each_kind_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of rows than one, another type: another kind."""
    runs: list[int] = []
    run_model = portable.run_model

    def count(model: bytes, inputs: dict[str, Any]) -> list[np.ndarray]:
        runs.append(len(inputs["hidden_states"]))
        return run_model(model, inputs)

    monkeypatch.setattr(portable, "run_model", count)
    with BodyChecks(LIMIT):
        for rows in (5, 6, 1, 1):
            moe(rows)
        moe(5, torch.bfloat16)
    assert runs == [5, 1, 5]


def test_some_rows_of_a_call_tell_of_the_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and visual tokens around the first picture's start, each with its own row of the output."""
    tensors = {name: torch.arange(30.0)[:, None] for name in ("hidden_states", "router_logits")}
    for first, kept in ((10, range(6, 14)), (2, range(8)), (27, range(23, 30))):
        visual_index = torch.arange(first, 30, dtype=torch.int32)
        cut, (output,) = portable._some_rows(tensors | {"visual_index": visual_index}, [torch.arange(30.0)])
        assert output.tolist() == cut["hidden_states"][:, 0].tolist() == list(kept)
        assert [kept[i] for i in cut["visual_index"].tolist()] == [row for row in kept if row >= first]
    none = tensors | {"visual_index": torch.zeros(0, dtype=torch.int32)}
    assert len(portable._some_rows(none, [torch.arange(30.0)])[1][0]) == portable.ROWS


def test_another_call_decides_where_a_near_tie_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several calls of a kind one that agrees is enough; a body that is wrong agrees in none."""
    distances = iter([0.5, 0.25, 1e-6, 0.5])
    monkeypatch.setattr(portable, "_distance", lambda *_: next(distances))
    with BodyChecks(LIMIT) as checks:
        for worst in (0.5, 0.25, 1e-6, 1e-6):
            moe(5)
            assert checks.worst["FmmSparseMoE"] == worst
        moe(1)
        assert checks.worst["FmmSparseMoE"] == 0.5


def test_a_body_that_computes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    function_for = portable.function_for
    monkeypatch.setattr(portable, "function_for", lambda spec, a: function_for(spec, {**a, "top_k": 1}))
    with BodyChecks(LIMIT) as checks:
        moe(5)
    assert checks.worst["FmmSparseMoE"] > 0.01


def test_calls_that_prune_are_kinds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unmodified model comes first, and tells nothing of what a body does with scores and with fewer experts."""
    monkeypatch.setattr(portable, "function_for", lambda spec, a: function_without_pruning(spec, dict(a)))
    for call, operator in ((moe_of_top_k, "FmmSparseMoE"), (prune_of_alpha, "FmmTokenPrune")):
        with BodyChecks(LIMIT) as checks:
            call(False)
            assert checks.worst[operator] < 1e-5
            call(True)
        assert checks.worst[operator] > 0.01


def moe_of_top_k(prunes: bool) -> None:
    moe(5, visual_top_k=1 if prunes else 2)


def prune_of_alpha(prunes: bool) -> None:
    """A call that keeps all of 30 visual tokens, or 10 of them."""
    inputs = prune_inputs(T=40, K=10 if prunes else 30, M=3 if prunes else 0, visual=np.arange(5, 35), alpha=0.3)
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    torch.ops.fastmmoe.token_prune(*tensors, TOKEN_PRUNE.encode(MLERP))


def function_without_pruning(spec: OpSpec, attributes: dict[str, Any]) -> ir.Function:
    """A body that takes all experts, or that takes alpha for another."""
    function = function_for(spec, attributes)
    name = "visual_top_k" if spec is SPARSE_MOE else "alpha"
    given = next(value for value in function.inputs if value.name == name)
    wrong = ir.node(
        "Constant", [], {"value": ir.tensor(np.array([2], np.int32) if spec is SPARSE_MOE else np.ones(1, np.float32))}
    )
    given.replace_all_uses_with(wrong.outputs[0])
    function.insert_before(function[0], wrong)
    return function


def test_an_output_of_another_shape() -> None:
    assert portable._distance(np.zeros((2, 3)), torch.zeros(2, 4)) == np.inf
