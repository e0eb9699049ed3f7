# SPDX-License-Identifier: Apache-2.0
"""What is in a bundle, as plain data and in lines; test_bundle.py of the command line has those that print it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from fastmmoe.runtime.bundle import inspection
from fastmmoe.runtime.bundle.inspection import describe_bundle, inspect_bundle
from fastmmoe.runtime.bundle.manifest import GRAPHS, file_entry, graph_file, load_manifest, write_manifest
from fastmmoe.runtime.errors import BundleMismatch
from tests.support.manifests import write_toy_bundle
from tests.support.onnx_graphs import write_graph_with_weights

STORED = 36
"""Values of `write_graph_with_weights` that are in external data: six tensors of six."""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The toy bundle with graphs that are some."""
    directory = write_toy_bundle(tmp_path / "toy")
    manifest = load_manifest(directory)
    files = dict(manifest.files)
    for graph in GRAPHS:
        path = directory / graph_file(graph)
        write_graph_with_weights(path, f"{graph}.data")
        files[path.name] = file_entry(path)
    write_manifest(directory, replace(manifest, files=files))
    return directory


def test_what_is_found_in_a_whole_bundle(whole: Path) -> None:
    found = json.loads(json.dumps(inspect_bundle(whole)))
    assert found["damage"] == [] and found["engines"] is None and found["plugin"] is None
    # Three layers of 16 experts, whose gate, up and down have 8 x 8 values.
    assert found["parameters"] == {"routed experts": 3 * 16 * 3 * 64, **dict.fromkeys(GRAPHS, STORED)}
    assert (found["methods"], found["default_method"]) == (["none", "fastmmoe"], "fastmmoe")
    assert found["policy"]["prune_layers"] == {"fastmmoe": [1, 2]}
    assert found["files"]["tokenizer.json"]["bytes"] == len("tokenizer.json")


def test_lines_of_a_whole_bundle(whole: Path) -> None:
    lines = describe_bundle(whole, inspect_bundle(whole))
    words = dict(line.split("  ", 1) for line in lines)
    assert {name: text.strip() for name, text in words.items()} | {"file": "", "exported": ""} == {
        "model": "toy (deepseek_vl2)",
        "checkpoint": "0",
        "exported": "",
        "target": "cpu, dtype fp32, activations float32, caches float32",
        "layers": "4, 3 with experts: 16, 4 a token",
        "sizes": "hidden 8, vocabulary 10, heads 4/2",
        "positions": "64 tokens at most",
        "pictures": "tiles of 16 x 16 pixels, 4 tokens each",
        "methods": "none, fastmmoe",
        "default": "fastmmoe at retention 0.5, alpha 0.3",
        "prune layers": "fastmmoe 1,2",
        "parameters": f"language_model {STORED}",
        "file": "",
    }
    assert f"file          tokenizer.json  {len('tokenizer.json')} bytes" in lines


def test_packed_experts_are_said(whole: Path) -> None:
    manifest = load_manifest(whole)
    experts = replace(manifest.experts, weight_format="int4", group_size=32)
    write_manifest(whole, replace(manifest, experts=experts))
    lines = describe_bundle(whole, inspect_bundle(whole))
    assert "target        cpu, dtype fp32, experts int4 by 32, activations float32, caches float32" in lines


@pytest.mark.parametrize(("weight_format", "in_an_element"), [("float", 1), ("int8", 1), ("int4", 2)])
def test_parameters_are_those_of_the_model_however_they_are_stored(
    whole: Path, weight_format: str, in_an_element: int
) -> None:
    # A linear layer of 16 x 32 beside two experts, which the manifest counts.
    stored = {"a.weight": 16 * 32 // in_an_element, "a.weight_scale": 16, "a.weight_zero": 16, "norm": 64}
    stored |= {"experts.gate_up": 256, "experts.gate_up_scale": 8, "experts.down": 128, "experts.router": 32}
    int8 = TensorProto.INT8
    weights = [TensorProto(name=name, dims=[size], data_type=int8, raw_data=b"") for name, size in stored.items()]
    for weight in weights:
        set_external_data(weight, "language_model.data")
    inputs = ["x", "a.weight", "a.weight_scale", "a.weight_zero"]
    linear = helper.make_node("FmmLinear", inputs, ["y"], domain="fastmmoe", weight_format=weight_format)
    experts = helper.make_node("FmmSparseMoE", ["y", *list(stored)[4:]], ["z"], domain="fastmmoe")
    graph = helper.make_graph([linear, experts], "graph", [], [], weights)
    path = whole / graph_file("language_model")
    path.write_bytes(helper.make_model(graph).SerializeToString())
    manifest = load_manifest(whole)
    write_manifest(whole, replace(manifest, files=manifest.files | {path.name: file_entry(path)}))
    assert inspect_bundle(whole)["parameters"]["language_model"] == 16 * 32 + 64 + 32


def test_a_graph_of_more_values_than_any_is_damaged(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MOST_VALUES", STORED)
    assert inspect_bundle(whole)["damage"] == []
    monkeypatch.setattr(inspection, "MOST_VALUES", STORED - 1)
    words = f"says that it has more than {STORED - 1} stored values: damaged"
    assert inspect_bundle(whole)["damage"] == [f"{whole / graph_file(graph)}: {words}" for graph in GRAPHS]


def test_the_rest_of_a_damaged_bundle_is_shown(whole: Path) -> None:
    (whole / "vision.onnx").unlink()
    (whole / "engines.json").write_text("{")
    found = inspect_bundle(whole)
    missing, engines = found["damage"]
    assert missing == f"{whole / 'vision.onnx'}: missing; copy the whole bundle or export again"
    assert "engines.json: damaged, or written by another version" in engines
    assert "vision" not in found["parameters"] and found["parameters"]["embedding"] == STORED
    lines = describe_bundle(whole, found)
    assert lines[:2] == [f"DAMAGED: {missing}", f"DAMAGED: {engines}"] and lines[2].startswith("model ")


def test_without_a_manifest_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(BundleMismatch, match=r"no manifest\.json: not a bundle"):
        inspect_bundle(tmp_path)
