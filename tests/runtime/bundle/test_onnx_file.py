# SPDX-License-Identifier: Apache-2.0
"""Weights and operators of .onnx files, against files that the package onnx writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastmmoe.runtime.bundle.onnx_file import Operator, read_operators, read_weights, weight_files
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


@pytest.mark.parametrize("location", ["a", "n" * 127])
def test_files_are_found_in_the_bytes(location: str, tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    write_graph_with_weights(path, location)
    assert weight_files(path) == {location}


def test_a_graph_without_files(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    write_graph_with_weights(path, "")
    assert weight_files(path) == set() and {w.location for w in read_weights(path)} == {""}
    path.write_bytes(b"")
    assert weight_files(path) == set() and read_weights(path) == []


def test_sizes_are_products_and_a_scalar_is_one(tmp_path: Path) -> None:
    tensors = [helper.make_tensor(str(len(d)), TensorProto.FLOAT, d, np.zeros(d)) for d in ((), (0, 5), (2, 3, 300))]
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), tmp_path / "g.onnx")
    assert {w.name: w.size for w in read_weights(tmp_path / "g.onnx")} == {"0": 1, "2": 0, "3": 1800}


def test_operators_of_our_own_domain(tmp_path: Path) -> None:
    """Of the graph itself; attributes that are neither numbers nor strings are left out."""
    ours = helper.make_node(
        "Fmm", ["fastmmoe", "x"], ["y"], "n", domain="fastmmoe", k=300, how="mean", s=0.3, of=[1, 2]
    )
    others = [
        helper.make_node("Fmm", ["x"], ["y"], "fastmmoe"),
        helper.make_node("Fmm", ["x"], ["y"], "n", domain="fastmmoe.more"),
    ]
    inner = helper.make_graph([ours], "inner", [], [])
    nodes = [*others, ours, helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)]
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [])), path)
    expected: dict[str, float | str] = {"k": 300, "how": "mean", "s": float(np.float32(0.3))}
    assert read_operators(path) == [Operator("n", "Fmm", expected, ("fastmmoe", "x"), ("y",))]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"g\.onnx: no ONNX graph, or a damaged one"):
        read_operators(path)


@pytest.mark.parametrize(
    "data",
    [b"\x00", b"\x3a\x05\x0a", b"\x3b", b"\x08" + b"\xff" * 10 + b"\x01", b"\x39\x00"],
    ids=["field 0", "shorter than it says", "unknown kind", "endless number", "half a fixed number"],
)
def test_bytes_that_are_no_fields(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"g\.onnx: no ONNX graph, or a damaged one"):
        read_weights(tmp_path / "g.onnx")
