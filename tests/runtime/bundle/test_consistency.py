# SPDX-License-Identifier: Apache-2.0
"""Contradictions between parts of a manifest, each in its words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle.consistency import contradictions, custom_operators
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.bundle.storage import LinearsInfo
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request.family import FAMILIES
from tests.support.manifests import manifest_document

CONTRADICTIONS: dict[str, tuple[str, Any, str]] = {
    "caches of float16": (
        "cache_dtype",
        "float16",
        "cache_dtype is float16: expected float32 or bfloat16 with activation_dtype float32",
    ),
    "activations of another type": (
        "activation_dtype",
        "float16",
        "cache_dtype is float32: expected float16 with activation_dtype float16",
    ),
    "MoE layer outside": ("language_model.moe_layers", [1, 2, 4], "moe_layers has layer 4: expected 0 to 3"),
    "layers fall": ("language_model.moe_layers", [1, 3, 2], "moe_layers has 2 after 3"),
    "experts a token": ("language_model.top_k", 17, "top_k is 17: expected at most num_experts, 16"),
    "heads": ("language_model.kv_heads", 3, "kv_heads is 3: expected a divisor of heads, 4"),
    "cache shape": ("language_model.cache_shape", [2, 7], "of [2, 7]: expected key, value of [2, 6]"),
    "latent cache": ("language_model.cache_parts", ["latent"], "caches latent of"),
    "rotary": ("language_model.rope_dim", 8, "rope_dim is 8: expected at most query_key_dim, 6"),
    "window without layers": ("language_model.sliding_window", 5, "sliding_window is 5 with 0 sliding_layers"),
    "prune layer outside": ("policy.prune_layers", {"fastmmoe": [1, 5]}, "has layer 5: expected 0 to 3"),
    "prune layer without experts": ("policy.prune_layers", {"fastmmoe": [0, 1]}, "expected layers of moe_layers"),
    "method": ("policy.prune_layers", {"random": [1, 2]}, "is for random: expected fastmmoe, as the method is"),
    "exponents": ("policy.stage_exponents", [0.5], "expected 2, ascending, the last 1"),
    "exponents fall": ("policy.stage_exponents", [1.0, 0.5], "expected 2, ascending, the last 1"),
    "experts of visual tokens": ("policy.visual_top_k", [4, 2], "policy.visual_top_k is 4, 2: expected 3"),
    "too many of them": ("policy.visual_top_k", [4, 5, 2], "at most top_k, 4"),
    "vocabulary": ("processor.vocab_size", 11, "processor.vocab_size is 11: expected 10"),
    "id": ("processor.pad_token_id", 10, "processor.pad_token_id has 10: expected at most 9"),
    "no start": ("processor.bos_token_id", None, "processor.bos_token_id is null: expected an id"),
    "no end": ("processor.eos_token_id", None, "processor.eos_token_id is null: expected an id"),
    "stop id": ("processor.stop_token_ids", [1, 12], "processor.stop_token_ids has 12"),
    "tokens of a tile": ("vision.tokens_per_tile", 5, "4 tokens a tile"),
    "patch above the tile": ("processor.patch_size", 32, "gives 0 tokens a tile"),
    "resolutions": ("processor.candidate_resolutions", [[16, 16], [16, 24]], "has 24: expected multiples"),
    "family": ("family", "internvl3_5", "processor.type is deepseek_vl2: expected internvl"),
    "groups of floats": ("experts.group_size", 32, "experts are float with group_size 32"),
    "operators": (
        "ops",
        {"FmmSparseMoE": 1},
        "ops has FmmSparseMoE: expected FmmAttention, FmmSparseMoE, FmmTokenPrune",
    ),
    "portable graph": ("portable", False, "files has language_model.portable.onnx, which"),
    "plugin": ("plugin", {"version": "0", "architecture": "x86_64"}, "does not have libfastmmoe_trt.so"),
    "graph": ("files", {}, "does not have embedding.onnx, language_model.onnx, language_model.portable.onnx"),
    "tokenizer": ("processor.image_token_id", None, "files has tokenizer.json, which"),
    "heads of caches": ("language_model.cache_shape", [1, 6], "expected key, value of [2, 6] with kv_lora_rank 0"),
    "sliding layers without window": ("language_model.sliding_layers", [0], "sliding_window is None with 1 sliding"),
    "integers without groups": (
        "experts",
        {"weight_format": "int8", "group_size": 0, "zero_points": False},
        "experts are int8 with group_size 0 and zero_points False: expected a group_size with",
    ),
    "zeros of fp8": (
        "experts",
        {"weight_format": "fp8", "group_size": 32, "zero_points": True},
        "experts are fp8 with group_size 32 and zero_points True: expected a group_size with",
    ),
    "linear layers of integers without groups": (
        "linears.head",
        {"weight_format": "int8", "group_size": 0, "zero_points": False},
        "linears.head are int8 with group_size 0 and zero_points False: expected a group_size and zero points with",
    ),
    "linear layers without their operator": (
        "linears.dense",
        {"weight_format": "bf16", "group_size": 0, "zero_points": False},
        "expected FmmAttention, FmmLinear, FmmRotary, FmmSparseMoE, FmmTokenPrune for the policy and linears",
    ),
    "expert inputs without a plugin": (
        "experts.inputs",
        {"layers.1.mlp.experts.gate_up": {"dtype": "float16", "shape": [16, 16, 8], "offset": 0}},
        "experts.inputs are 1: expected some with a plugin, and none without",
    ),
    "zero points of floats": ("experts.zero_points", True, "experts are float with group_size 0 and zero_points True"),
}

OF_INTERNVL: dict[str, tuple[str, Any, str]] = {
    "family": ("family", "deepseek_vl2", "processor.type is internvl: expected deepseek_vl2 for family deepseek_vl2"),
    "tokens of a tile": ("processor.tokens_per_tile", 5, "processor.tokens_per_tile is 5: expected 4, as in vision"),
    "tiles": ("processor.min_tiles", 7, "processor.min_tiles is 7: expected at most max_tiles, 6"),
    "image token": ("processor.image_token_id", 10, "processor.image_token_id has 10: expected at most 9"),
}
ALL_METHODS = {"fastmmoe": [1, 2], "random": [1, 2], "fastv": [2], "sparsevlm": [0, 3]}
OF_COMPARISON: dict[str, tuple[dict[str, list[int]], str]] = {
    "a method less": ({"fastmmoe": [1, 2]}, "is for fastmmoe: expected fastmmoe, fastv, random, sparsevlm, as the"),
    "two layers of fastv": (ALL_METHODS | {"fastv": [2, 3]}, "prune_layers.fastv is 2, 3: expected one layer, from 1"),
    "fastv in front of layer 0": (ALL_METHODS | {"fastv": [0]}, "prune_layers.fastv is 0: expected one layer, from 1"),
    "others of random": (ALL_METHODS | {"random": [1, 3]}, "of fastmmoe and random differ: expected the same layers"),
    "sparsevlm falls": (ALL_METHODS | {"sparsevlm": [3, 0]}, "policy.prune_layers.sparsevlm has 0 after 3: expected"),
}


def found_in(document: dict[str, Any]) -> list[str]:
    """What the manifest contradicts itself in; each of its values by itself is legal."""
    return list(contradictions(msgspec.convert(document, Manifest)))


def with_value(family: str, path: str, value: Any) -> dict[str, Any]:
    """The small manifest with another value at a path."""
    changed = manifest_document(family)
    *parents, key = path.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[key] = value
    return changed


@pytest.mark.parametrize("family", [family.NAME for family in FAMILIES.values()])
def test_a_manifest_that_fits_together(family: str) -> None:
    assert found_in(manifest_document(family)) == []


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str) -> None:
    path, value, words = CONTRADICTIONS[name]
    assert words in found_in(with_value("deepseek_vl2", path, value))[0]


def with_expert_inputs(*places: int, size: int = 8192) -> dict[str, Any]:
    """A bundle for engines, with a file of weights of this size and inputs of 4096 bytes in it."""
    document = manifest_document("deepseek_vl2") | {"plugin": {"version": "0", "architecture": "x86_64"}}
    names = ("libfastmmoe_trt.so", "language_model.data")
    document["files"] |= {name: {"bytes": size, "sha256": "0" * 64} for name in names}
    inputs = (f"layers.{i}.mlp.experts.down" for i in range(len(places)))
    tensors = ({"dtype": "bfloat16", "shape": [16, 16, 8], "offset": place} for place in places)
    document["experts"] |= {"inputs": dict(zip(inputs, tensors, strict=True))}
    return document


def test_expert_inputs_stand_in_the_file_of_weights_one_after_the_other() -> None:
    assert found_in(with_expert_inputs(4096, 0)) == []
    assert "expected some with a plugin" in found_in(with_expert_inputs())[0]
    overlap = "experts.inputs.layers.1.mlp.experts.down is 4096 bytes at 4095: expected from 4096 to 8192"
    assert overlap in found_in(with_expert_inputs(0, 4095))[0]
    assert "is 4096 bytes at 4097: expected from 4096 to 8192" in found_in(with_expert_inputs(0, 4097))[0]


@pytest.mark.parametrize("name", OF_INTERNVL)
def test_contradictions_of_internvl(name: str) -> None:
    path, value, words = OF_INTERNVL[name]
    assert words in found_in(with_value("internvl3_5", path, value))[0]


@pytest.mark.parametrize("name", OF_COMPARISON)
def test_contradictions_of_a_comparison_bundle(name: str) -> None:
    layers, words = OF_COMPARISON[name]
    document = manifest_document("deepseek_vl2")
    document["policy"] |= {"method": "all", "prune_layers": ALL_METHODS}
    assert found_in(document) == []
    document["policy"]["prune_layers"] = layers
    (line,) = found_in(document)
    assert words in line


def test_every_contradiction_is_found() -> None:
    document = manifest_document("deepseek_vl2")
    document["language_model"] |= {"top_k": 17, "rope_dim": 7}
    document["processor"]["vocab_size"] = 11
    document["portable"] = False
    names = [line.split(" ")[0] for line in found_in(document)]
    places = ["language_model.top_k", "language_model.rope_dim", "processor.vocab_size", "files"]
    assert names == places


@pytest.mark.parametrize(
    ("layers", "operators"),
    [
        ({}, {"FmmAttention", "FmmSparseMoE"}),
        ({"sparsevlm": [0, 3]}, {"FmmAttention", "FmmSparseMoE"}),
        ({"fastv": [2]}, {"FmmAttention", "FmmSparseMoE", "FmmTokenPrune"}),
        (ALL_METHODS, {"FmmAttention", "FmmSparseMoE", "FmmTokenPrune"}),
    ],
)
def test_operators_of_a_policy(layers: dict[str, list[int]], operators: set[str]) -> None:
    """sparsevlm alone prunes by standard operators."""
    policy = manifest_document("deepseek_vl2")["policy"] | {"prune_layers": layers}
    document = manifest_document("deepseek_vl2")
    floats = msgspec.convert(document["linears"], LinearsInfo)
    assert custom_operators(msgspec.convert(policy, Policy), floats, is_tiled=True) == operators
    packed = {"weight_format": "int8", "group_size": 128, "zero_points": False}
    for part in ("dense", "head", "vision"):
        linears = msgspec.convert(document["linears"] | {part: packed}, LinearsInfo)
        beside = {"dense": ["FmmRotary"], "vision": ["FmmVisionAttention"]}
        expected = {*operators, "FmmLinear", *beside.get(part, [])}
        assert custom_operators(msgspec.convert(policy, Policy), linears, is_tiled=True) == expected
        in_rows = custom_operators(msgspec.convert(policy, Policy), linears, is_tiled=False)
        assert in_rows == expected - {"FmmRotary"}
