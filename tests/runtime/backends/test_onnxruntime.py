# SPDX-License-Identifier: Apache-2.0
"""A backend of ONNX Runtime: what it says of a run that fails, and of weights that changed under it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fastmmoe.runtime.backends.base import Observed
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime, _show
from fastmmoe.runtime.bundle.manifest import GRAPHS, load_manifest
from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.errors import BundleMismatch, FastmmoeError, RunFailed


def _session(node: str, given: str, of: int, gives: str) -> ort.InferenceSession:
    """A graph of one node on a 4 x 2 table and one input."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4, 2], np.arange(8.0))
    names = ["table", given] if node == "Gather" else [given, "table"]
    graph = helper.make_graph(
        [helper.make_node(node, names, [gives])],
        "graph",
        [helper.make_tensor_value_info(given, of, None)],
        [helper.make_tensor_value_info(gives, TensorProto.FLOAT, None)],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _backend(**sessions: ort.InferenceSession) -> OnnxRuntime:
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend._sessions, backend._weights = sessions, MappedFiles(())
    return backend


def test_an_operator_that_refuses_its_inputs() -> None:
    backend = _backend(
        embedding=_session("Gather", "input_ids", TensorProto.INT32, "inputs_embeds"),
        vision=_session("MatMul", "pixel_values", TensorProto.FLOAT, "image_features"),
    )
    assert backend.embed(np.array([3])).tolist() == [[6, 7]]
    with pytest.raises(
        RunFailed, match=r"^embedding: onnxruntime [\d.]+ cannot run it: [^\n]*out of data bounds[^\n]*$"
    ):
        backend.embed(np.array([9]))
    for pixels in (np.ones((1, 3), np.float32), np.ones((1, 4), np.int64)):
        with pytest.raises(FastmmoeError, match=r"^vision: onnxruntime [^\n]+$"):
            backend.image_features({"pixel_values": pixels})


@pytest.mark.parametrize("call", ["embed", "image_features", "extend"])
def test_files_are_looked_at_before_they_are_read(call: str, tmp_path: Path) -> None:
    """Reading behind the new end of a mapped file that has become shorter ends the process."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend._weights, backend._sessions = MappedFiles([path]), dict.fromkeys(GRAPHS)
    os.truncate(path, 10)
    calls: dict[str, Callable[[], object]] = {
        "embed": lambda: backend.embed(np.zeros(1)),
        "image_features": lambda: backend.image_features({}),
        "extend": lambda: backend.extend({}, {}),
    }
    with pytest.raises(BundleMismatch, match="weights: has been written to or renamed since"):
        calls[call]()


def test_a_graph_that_cannot_be_loaded(toy_bundle: Path) -> None:
    """The toy bundle's are its files' names."""
    words = rf"^{toy_bundle}/vision\.onnx: onnxruntime [\d.]+ cannot load it: [^\n\\]+$"
    with pytest.raises(BundleMismatch, match=words):
        OnnxRuntime(toy_bundle, load_manifest(toy_bundle), graphs=("vision",))


def test_what_is_observed_becomes_an_output() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["c", "a"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xkb"]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    shown = _show(graph, Observed("Mul", {"left": 0, "right": 1}, {"product": 0}))
    assert shown == {
        "Mul.left.0": "x",
        "Mul.right.0": "k",
        "Mul.product.0": "a",
        "Mul.left.1": "c",
        "Mul.right.1": "a",
        "Mul.product.1": "y",
    }
    # Each once, and no input: those are given already.
    assert [output.name for output in graph.output] == ["y", "a", "c"]
