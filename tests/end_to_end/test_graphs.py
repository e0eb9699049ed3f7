# SPDX-License-Identifier: Apache-2.0
"""The files of a bundle: names, symbolic dimensions, external weights, and nothing of the machine that made them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import Manifest, read_manifest
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM

Tensors = dict[str, Array]

CHECKPOINTS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
OPS = {"FmmAttention", "FmmSparseMoE", "FmmTokenPrune"}
# A path, a source file or a stack trace among the protobuf's names and metadata.
TRACES = re.compile(rb"/(home|root|usr|tmp|opt|Users|private|var)/|\.py\b|site-packages|Traceback|File \"|line \d+")
MODULE = re.compile(r"^[a-z_]+(\.\w+)*/[A-Z]\w*$")
MODULE_OF_OP = {"FmmSparseMoE": re.compile(r"^layers\.\d+\.mlp\.experts/FmmSparseMoE$")}
PLACES = {
    "vision": {"patches", "blocks", "projector"},
    "embedding": {"embedding"},
    "language_model": {"groups", "layers", "head"},
}
LARGEST_GRAPH_BYTES = 300_000


@pytest.fixture(params=CHECKPOINTS)
def directory(request: pytest.FixtureRequest, bundle: Callable[..., Path]) -> Path:
    """The bundle of every checkpoint in turn."""
    return bundle(request.param)


def load(directory: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(directory / f"{graph}.onnx", load_external_data=False)


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {value.name: dims(value) for value in values}


def expected_inputs(manifest: Manifest) -> dict[str, list[int | str]]:
    """The language model's inputs as runtime/bundle/graph_io.py documents them."""
    info, policy = manifest.language_model, manifest.policy
    expected: dict[str, list[int | str]] = {
        "inputs_embeds": ["T", info.hidden_size],
        "position_ids": ["T"],
        "sequence_ids": ["T"],
        "sequence_offsets": ["offsets"],
        "visual_index": ["V"],
    }
    if policy.method != "none":
        expected |= {"visual_offsets": ["offsets"]}
        expected |= {"visual_top_k": [len(info.moe_layers)], "alpha": [len(policy.sites)]}
    if policy.method == "all":
        expected["method"] = [1]
    if policy.method in ("all", "random"):
        expected["random_scores"] = ["V"]
    if policy.method in ("all", "sparsevlm"):
        expected["rater_slots"] = ["Q"]
    for s, site in enumerate(policy.sites):
        expected |= {f"keep_slots.{s}": [f"K{s}"], f"keep_offsets.{s}": ["offsets"]}
        if site.methods[0] in ("fastmmoe", "sparsevlm"):
            expected[f"merge_slots.{s}"] = [f"M{s}"]
        if site.methods[0] == "fastmmoe":
            expected[f"merge_offsets.{s}"] = ["offsets"]
        if site.methods[0] == "sparsevlm":
            expected[f"recycle_slots.{s}"] = [f"N{s}"]
    for g, layers in enumerate(signatures.layer_groups(info.layers, policy.sites)):
        for layer in layers:
            for part in info.cache_parts:
                heads, width = info.cache_shape
                expected[f"past_key_values.{layer}.{part}"] = ["B", heads, f"C{g}", width]
        expected[f"past_lengths.{g}"] = ["B"]
        if {*layers} & {*info.sliding_layers}:
            expected[f"past_position_ids.{g}"] = ["B", f"C{g}"]
    return expected


def check_language_model(directory: Path, graph: str = "language_model") -> None:
    manifest = read_manifest(directory)
    model = load(directory, graph)
    inputs, outputs = shapes(model.graph.input), shapes(model.graph.output)
    expected = expected_inputs(manifest)
    assert inputs == expected
    sites = range(len(manifest.policy.sites))
    present = {
        name.replace("past_key_values", "present").replace("past_", "present_") for name in expected if "past" in name
    }
    assert outputs.keys() == {"logits", "next_ids", "next_position_ids", *present, *(f"kept_index.{s}" for s in sites)}
    assert outputs["logits"] == ["offsets - 1", manifest.language_model.vocab_size]
    assert outputs["next_ids"] == outputs["next_position_ids"] == ["offsets - 1"]
    # What a call writes to keeps its shape.
    for name in expected:
        if "past" in name:
            assert outputs[name.replace("past_key_values", "present").replace("past_", "present_")] == expected[name]
    for s in sites:
        symbols = set(re.findall(r"[A-Z]\d*", str(outputs[f"kept_index.{s}"][0])))
        assert symbols == {"T", "V", f"K{s}"}


def test_names_and_dimensions_of_the_abi(directory: Path) -> None:
    check_language_model(directory)
    check_language_model(directory, "language_model.portable")
    manifest = read_manifest(directory)
    vision, embedding = load(directory, "vision").graph, load(directory, "embedding").graph
    side, hidden = manifest.processor.tile_size, manifest.language_model.hidden_size
    layout: dict[str, list[int | str]] = {"layout_index": ["V"]} if manifest.family == "deepseek_vl2" else {}
    assert shapes(vision.input) == {"pixel_values": ["tiles", 3, side, side]} | layout
    features = shapes(vision.output)
    assert features.keys() == {"image_features"}
    assert isinstance(features["image_features"][0], str) and features["image_features"][1] == hidden
    assert shapes(embedding.input) == {"input_ids": ["T"]}
    assert shapes(embedding.output) == {"inputs_embeds": ["T", hidden]}


def test_graph_without_the_method(bundle: Callable[..., Path]) -> None:
    directory = bundle("internvl-gptoss", "--method", "none")
    check_language_model(directory)
    assert {n.op_type for n in load(directory, "language_model").graph.node} & OPS == {"FmmAttention", "FmmSparseMoE"}


def test_functions_are_in_the_portable_variant_only(directory: Path) -> None:
    for graph in ("vision", "embedding", "language_model"):
        assert not load(directory, graph).functions
    assert {n.op_type for n in load(directory, "language_model").graph.node if n.domain} == OPS
    portable = load(directory, "language_model.portable")
    # A function has the attributes of its nodes in it: attention comes with a window, with lse, or with neither.
    assert {f.name.split("_")[0] for f in portable.functions} == OPS
    assert {n.op_type for n in portable.graph.node if n.domain} == {f.name for f in portable.functions}
    assert {f.domain for f in portable.functions} == {"fastmmoe"}


def test_caches_go_through_attention_alone(directory: Path) -> None:
    """Nothing else reads or makes one, so nothing can copy one: each output has the address of its input."""
    graph = load(directory, "language_model").graph
    caches = {i.name for i in graph.input if i.name.startswith(("past_key_values.", "past_position_ids."))}
    readers = [node for node in graph.node if caches & {*node.input}]
    makers = [node for node in graph.node if any(o.startswith(("present.", "present_position")) for o in node.output)]
    assert len(caches) >= len(makers) > 1
    assert {node.op_type for node in [*readers, *makers]} - {"Shape"} == {"FmmAttention"}


def test_node_names_are_module_paths(directory: Path) -> None:
    for graph in ("vision", "embedding", "language_model"):
        nodes = list(load(directory, graph).graph.node)
        names = [node.name for node in nodes]
        assert len(set(names)) == len(names)
        for node in nodes:
            assert MODULE.match(node.name), node.name
            if node.op_type in MODULE_OF_OP:
                assert MODULE_OF_OP[node.op_type].match(node.name), node.name
        assert {re.match(r"^[a-z_]+", name)[0] for name in names} <= PLACES[graph]  # type: ignore[index]
        if graph != "embedding":
            inside = [name for name in names if re.match(r"^(blocks|layers)\.\d+[./]", name)]
            assert len(inside) > len(names) / 2


def test_nothing_of_the_exporting_machine(directory: Path) -> None:
    paths = sorted(directory.glob("*.onnx"))
    assert len(paths) == 4
    places = (sys.prefix, Path.cwd(), directory.parent)
    for path in paths:
        data = path.read_bytes()
        found = TRACES.search(data)
        assert found is None, (path.name, found)
        assert not [place for place in places if str(place).encode() in data]
        model = onnx.load(path, load_external_data=False)
        assert model.producer_name == "fastmmoe"
        assert not model.doc_string and not model.graph.doc_string and not model.graph.metadata_props
        assert not [n.name for n in model.graph.node if n.doc_string or n.metadata_props]
        said, manifest = {p.key: p.value for p in model.metadata_props}, read_manifest(directory)
        assert (said["model"], said["family"]) == (manifest.model, manifest.family)
        assert said.get("retention") == (f"{manifest.policy.retention:g}" if "language_model" in path.name else None)


def test_weights_are_external(directory: Path) -> None:
    for path in sorted(directory.glob("*.onnx")):
        assert path.stat().st_size < LARGEST_GRAPH_BYTES, path.name
        model = onnx.load(path, load_external_data=False)
        inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        # Vectors of a few numbers stay inside; no matrix does.
        assert max((int(np.prod(t.dims)) for t in inside), default=0) <= 64, path.name
        data = f"{path.name.split('.')[0]}.data"
        files = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert files == {data}
    sizes = {path.name: path.stat().st_size for path in directory.glob("*.data")}
    assert sizes["language_model.data"] > 1_000_000


def test_strict_shape_inference(directory: Path) -> None:
    for path in sorted(directory.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        inferred = onnx.shape_inference.infer_shapes(
            onnx.load(path, load_external_data=False), check_type=True, strict_mode=True, data_prop=True
        )
        typed = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type}
        values = {name for node in inferred.graph.node for name in node.output if name}
        assert values <= typed | {v.name for v in inferred.graph.output}, path.name


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_stock_onnxruntime_runs_the_portable_graph(
    name: str, bundle: Callable[..., Path], vlm: Callable[..., VLM]
) -> None:
    path = bundle(name) / "language_model.portable.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    manifest = vlm(name).manifest
    T, V, keep = 12, 6, (5, 3, 2)
    sizes = {"T": T, "V": V, "B": 1, "offsets": 2} | {f"K{s}": k for s, k in enumerate(keep)}
    sizes |= {f"C{g}": T for g in range(4)}
    types = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int8)": np.int8}
    feeds: dict[str, Array] = {
        i.name: np.zeros([sizes.get(d, 0) if isinstance(d, str) else d for d in i.shape], types[i.type])
        for i in session.get_inputs()
    }
    rng = np.random.default_rng(0)
    feeds["inputs_embeds"] = rng.standard_normal(feeds["inputs_embeds"].shape).astype(np.float32)
    feeds["position_ids"] = np.arange(T, dtype=np.int32)
    feeds["visual_index"] = np.arange(2, 2 + V, dtype=np.int32)
    feeds["sequence_offsets"][1], feeds["visual_offsets"][1] = T, V
    for s, k in enumerate(keep):
        feeds[f"keep_offsets.{s}"][1] = k
    feeds["visual_top_k"][:] = 2
    feeds["alpha"][:] = manifest.policy.alpha
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    assert outputs["logits"].shape == (1, manifest.language_model.vocab_size)
    assert np.isfinite(outputs["logits"]).all()
    assert [len(outputs[f"kept_index.{s}"]) for s in range(3)] == [T - V + k for k in keep]
    groups = signatures.layer_groups(manifest.language_model.layers, manifest.policy.sites)
    lengths = [outputs[f"present_lengths.{g}"].tolist() for g in range(len(groups))]
    assert lengths == [[T], *([T - V + k] for k in keep)][: len(groups)]
    assert outputs["next_ids"].tolist() == outputs["logits"].argmax(1).tolist()
    assert outputs["next_position_ids"].tolist() == [T]
