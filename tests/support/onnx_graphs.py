# SPDX-License-Identifier: Apache-2.0
"""Small .onnx files."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def tensor(name: str, location: str = "") -> TensorProto:
    """Six zeros, in the graph or in external data."""
    found = helper.make_tensor(name, TensorProto.FLOAT, [2, 3], [0.0] * 6)
    if location:
        found.ClearField("float_data")
        found.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "24")):
            found.external_data.add(key=key, value=value)
    return found


def write_graph_with_weights(path: Path, location: str) -> None:
    """A graph with tensors of its own, and with one in external data, in a branch of a condition and in a function."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor("constant", location))
    value = helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 3])
    branch = helper.make_graph([constant], "branch", [], [value], [tensor("inner", location)])
    condition = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([condition], "g", [], [], [tensor("own"), tensor("outer", location)])
    function = helper.make_function("d", "F", [], ["c"], [constant], [helper.make_opsetid("", 23)])
    onnx.save(helper.make_model(graph, functions=[function]), path)


def without_metadata(graph: bytes) -> bytes:
    """A graph's file but for what it says of the model that it is of."""
    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)
