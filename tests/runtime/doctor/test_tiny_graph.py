# SPDX-License-Identifier: Apache-2.0
"""The tiny graph is one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from fastmmoe.runtime.doctor.tiny_graph import TINY_GRAPH


def test_it_is_a_graph_that_runs() -> None:
    onnx.checker.check_model(onnx.load_from_string(TINY_GRAPH), full_check=True)
    session = ort.InferenceSession(TINY_GRAPH, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3.0], np.float32)})[0] == [3.0]
