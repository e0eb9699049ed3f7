# SPDX-License-Identifier: Apache-2.0
"""Weights and operators of .onnx files, against files that the package onnx writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.bundle.onnx_file import read_weights, weight_files
from tests.support.onnx_graphs import write_graph_with_weights


def test_weights_are_found_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    write_graph_with_weights(path, "g.data")
    weights = read_weights(path)
    assert sorted(w.name for w in weights) == ["constant"] * 3 + ["inner"] * 2 + ["outer", "own"]
    assert {w.size for w in weights} == {6}
    assert [w.location for w in weights if w.name == "own"] == [""]
    assert {w.location for w in weights if w.name != "own"} == weight_files(path) == {"g.data"}


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    write_graph_with_weights(path, "g.data")
    whole = path.read_bytes()
    for data in (whole[:-7], b"\xff" * 40, b"hello"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"g\.onnx: no ONNX graph, or a damaged one"):
            read_weights(path)


def test_a_graph_of_zeros_is_none(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"g\.onnx: no ONNX graph"):
        read_weights(tmp_path / "g.onnx")
