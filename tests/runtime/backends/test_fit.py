# SPDX-License-Identifier: Apache-2.0
"""Graphs against the manifest: what sessions say of themselves, and which files weights are in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import onnx
import pytest
from onnx import helper

from fastmmoe.runtime.backends.fit import TYPES, check_fit, check_operators, check_weight_files
from fastmmoe.runtime.bundle.manifest import Manifest, parse_manifest
from fastmmoe.runtime.bundle.signatures import Signature, Tensor, signatures
from fastmmoe.runtime.errors import BundleMismatch
from tests.support.manifests import manifest_document, toy_manifest
from tests.support.onnx_graphs import write_graph_with_weights

NAMES = {dtype: name for name, dtype in TYPES.items()}


def arguments(tensors: list[Tensor]) -> list[SimpleNamespace]:
    """As a session of ONNX Runtime gives them."""
    return [SimpleNamespace(name=t.name, shape=[d or "S + T" for d in t.shape], type=NAMES[t.dtype]) for t in tensors]


def session(inputs: list[Tensor], outputs: list[Tensor]) -> Any:
    return SimpleNamespace(get_inputs=lambda: arguments(inputs), get_outputs=lambda: arguments(outputs))


@pytest.fixture
def language_model() -> Signature:
    return signatures(toy_manifest("internvl3_5"))["language_model"]


def test_a_graph_that_fits(language_model: Signature) -> None:
    shuffled = list(reversed(language_model.outputs))
    check_fit(Path("x"), session(language_model.inputs, shuffled), language_model)


def changed(tensors: list[Tensor], which: str, **changes: Any) -> list[Tensor]:
    return [tensor._replace(**changes) if tensor.name == which else tensor for tensor in tensors]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("inputs_embeds", {"shape": ("T", 9)}, "inputs_embeds is float32 [T, 9], expected float32 [T, 8]"),
        ("inputs_embeds", {"dtype": "float16"}, "inputs_embeds is float16 [T, 8], expected float32 [T, 8]"),
        ("position_ids", {"shape": (5,)}, "position_ids is int32 [5], expected int32 [T]"),
        ("position_ids", {"shape": ("T", "T")}, "position_ids is int32 [T, T], expected int32 [T]"),
        ("alpha", {"shape": ("sites",)}, "alpha is float32 [sites], expected float32 [2]"),
        ("alpha", {"name": "beta"}, "has an input beta, which is not expected"),
    ],
)
def test_inputs_of_another_graph(name: str, changes: dict[str, Any], words: str, language_model: Signature) -> None:
    graph = session(changed(language_model.inputs, name, **changes), language_model.outputs)
    with pytest.raises(BundleMismatch) as error:
        check_fit(Path("x.onnx"), graph, language_model)
    assert words in str(error.value)


def test_caches_of_other_prune_layers() -> None:
    """Which caches share a length follows from the prune layers."""
    values = manifest_document("internvl3_5")
    values["language_model"]["layers"] = 5
    values["policy"]["prune_layers"]["fastmmoe"] = [1, 3]
    other = signatures(parse_manifest(json.dumps(values).encode(), Path("manifest.json")))["language_model"]
    values["policy"]["prune_layers"]["fastmmoe"] = [1, 2]
    own = signatures(parse_manifest(json.dumps(values).encode(), Path("manifest.json")))["language_model"]
    with pytest.raises(BundleMismatch, match=r"values\.3\.key is float32 \[B, 2, C2, 6\], expected .* C1, 6\]"):
        check_fit(Path("x.onnx"), session(own.inputs, own.outputs), other)


def test_caches_of_another_capacity(language_model: Signature) -> None:
    """One symbol for all capacities would have them equal."""
    caches = [
        t._replace(shape=("B", 2, "C", 6)) if t.name == "past_key_values.3.key" else t for t in language_model.inputs
    ]
    with pytest.raises(BundleMismatch, match=r"values\.3\.key is float32 \[B, 2, C, 6\], expected .* C2, 6\]"):
        check_fit(Path("x.onnx"), session(caches, language_model.outputs), language_model)


def test_outputs_of_another_graph(language_model: Signature) -> None:
    graph = session(language_model.inputs, changed(language_model.outputs, "logits", shape=("", 11)))
    with pytest.raises(BundleMismatch, match=r"output logits is float32 \[any, 11\], expected float32 \[any, 10\]"):
        check_fit(Path("x.onnx"), graph, language_model)
    with pytest.raises(BundleMismatch, match=r"has no output logits"):
        check_fit(Path("x.onnx"), session(language_model.inputs, language_model.outputs[1:]), language_model)


@pytest.mark.parametrize("location", ["../embedding.data", "/etc/passwd", "vision.data", "embedding.data"])
def test_weights_of_another_file(location: str, tmp_path: Path) -> None:
    # The toy manifest lists no embedding.data.
    manifest = toy_manifest("deepseek_vl2")
    write_graph_with_weights(tmp_path / "embedding.onnx", location)
    with pytest.raises(BundleMismatch, match=f"has weights in '{location}', expected embedding.data, as listed"):
        check_weight_files(tmp_path / "embedding.onnx", "embedding", manifest)


MOE = {"top_k": 4, "reduction_weights": "preserve_sum", "weight_format": "float", "group_size": 0, "zero_points": 0}
PRUNE = {"window": 3, "merge": "mlerp"}
ATTENTION = {"window": 0, "value_width": 0, "scale": 6**-0.5, "writes_position_ids": 0, "has_lse": 0}


def taken(layer: int, *more: str) -> list[str]:
    """Layers 0 and 1 are a group, then 2, then 3."""
    key, value = (f"past_key_values.{layer}.{part}" for part in ("key", "value"))
    return [key, f"past_lengths.{max(0, layer - 1)}", "v", value, *more]


def given(layer: int, *more: str) -> list[str]:
    return [f"present.{layer}.key", f"present.{layer}.value", *more]


def attention_nodes(changes: dict[int, dict[str, Any]]) -> list[onnx.NodeProto]:
    """Attention of four layers, of which 1 and 2 prune, with the changes in some: attributes, "taken" and "given"."""
    return [
        helper.make_node(
            "FmmAttention",
            ["q", "k", *changes.get(layer, {}).get("taken", taken(layer)), "sink"],
            ["y", *changes.get(layer, {}).get("given", given(layer)), "lse"],
            f"layers.{layer}.self_attn/FmmAttention",
            domain="fastmmoe",
            has_sinks=0,
            **ATTENTION
            | {"has_lse": int(layer in (1, 2))}
            | {name: value for name, value in changes.get(layer, {}).items() if name not in ("taken", "given")},
        )
        for layer in range(4)
    ]


def write_operators(
    path: Path,
    moe: dict[str, Any] = MOE,
    prune: dict[str, Any] = PRUNE,
    first: int = 1,
    attention: dict[int, dict[str, Any]] | None = None,
    attention_layers: slice = slice(4),
) -> None:
    """A graph of nodes alone, as the toy manifest describes it where nothing else is given."""
    nodes = [helper.make_node("Add", ["x", "x"], ["fastmmoe"]), *attention_nodes(attention or {})[attention_layers]]
    for layer in range(first, first + 3):
        nodes.append(helper.make_node("FmmTokenPrune", ["x"], ["y"], f"TokenPrune_{layer}", domain="fastmmoe", **prune))
        name = f"layers.{layer}.mlp.experts/FmmSparseMoE"
        nodes.append(helper.make_node("FmmSparseMoE", ["x"], ["y"], name, domain="fastmmoe", scale=0.5, **moe))
    nodes.append(helper.make_node("FmmSparseMoE", ["x"], ["y"], "of another domain", domain="other", top_k=1))
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [])), path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe": MOE | {"top_k": 8}}, "layers.1.mlp.experts/FmmSparseMoE has top_k 8, expected 4"),
        ({"moe": MOE | {"reduction_weights": "none"}}, "has reduction_weights none, expected preserve_sum"),
        ({"moe": MOE | {"weight_format": "int4"}}, "has weight_format int4, expected float"),
        ({"moe": MOE | {"group_size": 32}}, "has group_size 32, expected 0"),
        ({"moe": MOE | {"zero_points": 1}}, "has zero_points 1, expected 0"),
        ({"moe": {}}, "has top_k None, expected 4"),
        ({"prune": PRUNE | {"window": 2}}, "TokenPrune_1 has window 2, expected 3"),
        ({"prune": PRUNE | {"merge": "mean"}}, "has merge mean, expected mlerp"),
        ({"first": 2}, "has experts in layers 2, 3, 4, expected 1, 2, 3"),
        ({"attention": {0: {"window": 8}}}, "layers.0.self_attn/FmmAttention has window 8, expected 0"),
        ({"attention": {3: {"value_width": 6}}}, "layers.3.self_attn/FmmAttention has value_width 6, expected 0"),
        ({"attention": {2: {"scale": 0.5}}}, "layers.2.self_attn/FmmAttention has scale 0.5, expected 0.40824"),
        ({"attention": {1: {"has_lse": 0}}}, "layers.1.self_attn/FmmAttention has has_lse 0, expected 1"),
        ({"attention": {3: {"has_lse": 1}}}, "layers.3.self_attn/FmmAttention has has_lse 1, expected 0"),
        ({"attention": {0: {"writes_position_ids": 1}}}, "has writes_position_ids 1, expected 0"),
        (
            {"attention": {0: {"taken": taken(1)}}},
            "FmmAttention takes past_key_values.1.key, past_lengths.0, past_key_v",
        ),
        ({"attention": {3: {"given": given(2)}}}, "3.self_attn/FmmAttention gives present.2.key, present.2.value, exp"),
        ({"attention": {3: {"given": given(3)[::-1]}}}, "gives present.3.value, present.3.key, expected present.3.key"),
        ({"attention": {2: {"given": []}}}, "gives none, expected present.2.key, present.2.value, by manifest.json"),
        ({"attention_layers": slice(1, 4)}, "has attention in layers 1, 2, 3, expected 0, 1, 2, 3"),
        ({"attention_layers": slice(0)}, "has attention in layers none, expected 0, 1, 2, 3"),
        ({"attention_layers": slice(None, None, -1)}, "has attention in layers 3, 2, 1, 0, expected 0, 1, 2, 3"),
    ],
)
def test_operators_that_compute_otherwise(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    manifest = toy_manifest("deepseek_vl2")
    path = tmp_path / "language_model.onnx"
    write_operators(path)
    check_operators(path, manifest)
    write_operators(path, **changes)
    with pytest.raises(BundleMismatch) as error:
        check_operators(path, manifest)
    assert words in str(error.value) and "by manifest.json" in str(error.value)


def sliding(layer: int, group: int) -> dict[str, Any]:
    """The first sliding layer of a group."""
    caches = {
        "taken": taken(layer, f"past_position_ids.{group}"),
        "given": given(layer, f"present_position_ids.{group}"),
    }
    return {"window": 9, "writes_position_ids": 1} | caches


SECOND: dict[str, Any] = {"window": 9, "taken": taken(1, "present_position_ids.0")}
SLIDING = {1: sliding(1, 0), 3: sliding(3, 2)}
LATENT: dict[int, dict[str, Any]] = {
    layer: {
        "value_width": 5,
        "taken": [f"past_key_values.{layer}.latent", f"past_lengths.{max(0, layer - 1)}"],
        "given": [f"present.{layer}.latent"],
    }
    for layer in range(4)
}


@pytest.mark.parametrize(
    ("language_model", "fits", "changes", "words"),
    [
        ({"sliding_layers": [1, 3], "sliding_window": 9}, SLIDING, {1: {"window": 8}}, "has window 8, expected 9"),
        (
            {"sliding_layers": [0, 1, 3], "sliding_window": 9},
            SLIDING | {0: sliding(0, 0), 1: SECOND},
            {1: SLIDING[1]},
            "layers.1.self_attn/FmmAttention has writes_position_ids 1, expected 0",
        ),
        (
            {"sliding_layers": [1, 3], "sliding_window": 9},
            SLIDING,
            {3: {"window": 9}},
            "layers.3.self_attn/FmmAttention has writes_position_ids 0, expected 1",
        ),
        (
            {"sliding_layers": [0, 1, 3], "sliding_window": 9},
            SLIDING | {0: sliding(0, 0), 1: SECOND},
            {1: SECOND | {"taken": taken(1, "past_position_ids.0")}},
            "past_key_values.1.value, past_position_ids.0, expected past_key_values.1.key, past_lengths.0, "
            "past_key_values.1.value, present_position_ids.0, by manifest.json",
        ),
        (
            {"sliding_layers": [1, 3], "sliding_window": 9},
            SLIDING,
            {3: SLIDING[3] | {"given": given(3, "present_position_ids.0")}},
            "gives present.3.key, present.3.value, present_position_ids.0, expected present.3.key, present.3.value, "
            "present_position_ids.2, by manifest.json",
        ),
        (
            {"kv_lora_rank": 5, "rope_dim": 2, "cache_parts": ["latent"], "cache_shape": [1, 7]},
            LATENT,
            {2: {"value_width": 7}},
            "layers.2.self_attn/FmmAttention has value_width 7, expected 5",
        ),
    ],
)
def test_attention_of_each_layer(
    language_model: dict[str, Any],
    fits: dict[int, dict[str, Any]],
    changes: dict[int, dict[str, Any]],
    words: str,
    tmp_path: Path,
) -> None:
    values = manifest_document("internvl3_5")
    values["language_model"] |= language_model
    manifest = parse_manifest(json.dumps(values).encode(), Path("manifest.json"))
    path = tmp_path / "language_model.onnx"
    write_operators(path, attention=fits)
    check_operators(path, manifest)
    write_operators(path, attention=fits | changes)
    with pytest.raises(BundleMismatch) as error:
        check_operators(path, manifest)
    assert words in str(error.value)


def test_variants_of_a_portable_graph(tmp_path: Path) -> None:
    """Nodes of other attributes have a type of another name there."""
    manifest, path = toy_manifest("deepseek_vl2"), tmp_path / "language_model.portable.onnx"
    write_operators(path)
    model = onnx.load(path)
    for node in model.graph.node:
        if node.name.startswith(("layers.1.self_attn", "layers.2.self_attn")):
            node.op_type += "_2"
    onnx.save(model, path)
    check_operators(path, manifest)
    del model.graph.node[2]
    onnx.save(model, path)
    with pytest.raises(BundleMismatch, match="has attention in layers 0, 2, 3, expected 0, 1, 2, 3"):
        check_operators(path, manifest)


def test_which_methods_watch_attention(tmp_path: Path) -> None:
    """random alone looks at no attention; sites of other layers and methods do."""
    values = manifest_document("deepseek_vl2")
    values["policy"] |= {"method": "random", "prune_layers": {"random": [1, 2]}}
    random = parse_manifest(json.dumps(values).encode(), Path("manifest.json"))
    path = tmp_path / "language_model.onnx"
    write_operators(path, attention={1: {"has_lse": 0}, 2: {"has_lse": 0}})
    check_operators(path, random)
    write_operators(path)
    with pytest.raises(BundleMismatch, match="has has_lse 1, expected 0"):
        check_operators(path, random)


def linear_node(name: str, layout: str, weight_format: str, group_size: int) -> onnx.NodeProto:
    """A node with the attributes that a manifest tells of."""
    values: dict[str, Any] = {
        "weight_layout": layout,
        "weight_format": weight_format,
        "group_size": group_size,
        "zero_points": 0,
    }
    return helper.make_node("FmmLinear", ["x"], ["y"], name, domain="fastmmoe", **values)


@pytest.mark.parametrize(("target", "layout", "other"), [("cpu", "tiles", "logical"), ("rtx", "logical", "tiles")])
def test_linear_layers_stand_as_the_target_reads_them(target: str, layout: str, other: str, tmp_path: Path) -> None:
    values, path = manifest_document("deepseek_vl2") | {"target": target}, tmp_path / "language_model.onnx"
    packed = {
        "dense": {"weight_format": "int4", "group_size": 32, "zero_points": False},
        "head": {"weight_format": "int8", "group_size": 128, "zero_points": False},
    }
    values["linears"] |= packed
    manifest = msgspec.convert(values, Manifest)

    def write(*layouts: str) -> None:
        write_operators(path)
        model = onnx.load(path)
        model.graph.node.append(linear_node("layers.0.self_attn.q_proj/FmmLinear", layouts[0], "int4", 32))
        model.graph.node.append(linear_node("lm_head/FmmLinear", layouts[1], "int8", 128))
        onnx.save(model, path)

    write(layout, layout)
    check_operators(path, manifest)
    for layouts, name in (((other, layout), "layers.0.self_attn.q_proj"), ((layout, other), "lm_head")):
        write(*layouts)
        message = f"{name}/FmmLinear has weight_layout {other}, expected {layout}, by"
        with pytest.raises(BundleMismatch, match=message):
            check_operators(path, manifest)
