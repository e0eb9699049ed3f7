# SPDX-License-Identifier: Apache-2.0
"""Traces of ONNX Runtime, as files and of a session; what is summed of calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fastmmoe.runtime.backends.node_times import NodeTime, NodeTimes, by_node, read_trace


def event(name: str, ts: int, dur: int, cat: str = "Node", **args: Any) -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "ph": "X", "args": args}


def written(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text(json.dumps(events))
    return path


def test_nodes_belong_to_the_call_in_which_they_began(tmp_path: Path) -> None:
    """Events may stand in any order; what is no node is left out."""
    path = written(
        tmp_path / "trace.json",
        event("session_initialization", 0, 90, "Session"),
        event("b/Add_kernel_time", 350, 4, op_name="Add"),
        event("a/Mul_kernel_time", 110, 240, op_name="Mul"),
        event("model_run", 100, 3000, "Session"),
        event("a/Mul_kernel_time", 3200, 7, op_name="Mul"),
        event("SequentialExecutor::Execute", 101, 2900, "Session"),
        event("model_run", 3200, 100, "Session"),
        event("a/Mul_fence_before", 105, 1, op_name="Mul"),
    )
    assert read_trace(path) == [
        [NodeTime("a/Mul", "Mul", 0.24), NodeTime("b/Add", "Add", 0.004)],
        [NodeTime("a/Mul", "Mul", 0.007)],
    ]


def test_a_loop_is_one_node_with_all_that_ran_in_it(tmp_path: Path) -> None:
    """Before it a node that took no microsecond; the first inside begins with it; what follows begins at its end."""
    path = written(
        tmp_path / "trace.json",
        event("model_run", 100, 900, "Session"),
        event("before_kernel_time", 200, 0),
        event("inside_kernel_time", 200, 30),
        event("none_kernel_time", 230, 0),
        event("last_kernel_time", 230, 70),
        event("Loop_kernel_time", 200, 100),
        event("after_kernel_time", 300, 50),
        event("end_kernel_time", 350, 0),
    )
    assert [(node.name, node.ms) for node in read_trace(path)[0]] == [
        ("Loop", 0.1),
        ("before", 0.0),
        ("after", 0.05),
        ("end", 0.0),
    ]


@pytest.mark.parametrize("ts", [10, 250])
def test_a_trace_that_is_not_whole_is_refused(ts: int, tmp_path: Path) -> None:
    path = written(tmp_path / "trace.json", event("model_run", 100, 50, "Session"), event("a_kernel_time", ts, 1))
    with pytest.raises(ValueError, match=rf"a_kernel_time at {ts} us is in no call: the trace is not whole"):
        read_trace(path)


def test_times_are_summed_by_name() -> None:
    """Of a node that ran twice in a call both count; one that did not run in a call has 0 there."""
    calls = [
        [NodeTime("a", "Mul", 1.0), NodeTime("b", "If", 2.0), NodeTime("a", "Mul", 4.0)],
        [NodeTime("c", "", 8.0), NodeTime("a", "Mul", 16.0)],
    ]
    assert by_node(calls) == [
        NodeTimes("a", "Mul", (5.0, 16.0)),
        NodeTimes("b", "If", (2.0, 0.0)),
        NodeTimes("c", "", (0.0, 8.0)),
    ]
    assert by_node([]) == []


def test_a_session_of_onnx_runtime(tmp_path: Path) -> None:
    """Two products that it does not fuse, in three calls: each call's nodes in order, no longer than the call."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], "layers.0.a/MatMul")]
    nodes.append(helper.make_node("MatMul", ["y", "x"], ["z"], "layers.1.b/MatMul"))
    x, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [64, 64]) for n in "xz")
    model = helper.make_model(helper.make_graph(nodes, "two", [x], [z]), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "two")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, {"x": np.zeros((64, 64), np.float32)})
    calls = read_trace(Path(session.end_profiling()))
    assert [[(node.name, node.operator) for node in call] for call in calls] == 3 * [
        [("layers.0.a/MatMul", "MatMul"), ("layers.1.b/MatMul", "MatMul")]
    ]
    assert all(0 <= node.ms < 1e3 for call in calls for node in call)
