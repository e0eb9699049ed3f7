# SPDX-License-Identifier: Apache-2.0
"""Signatures of graphs by hand; the feeds of a call are the inputs of the graph; groups of caches."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.bundle.signatures import Tensor
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.policy import Policy, Site
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.manifests import manifest_document, toy_manifest


@pytest.mark.parametrize("method", ["none", "fastmmoe", "random", "fastv", "sparsevlm"])
def test_feeds_are_the_inputs_but_the_caches(method: str) -> None:
    toy = manifest_document("deepseek_vl2")
    info = msgspec.convert(toy["language_model"], LanguageModelInfo)
    layers = {"fastmmoe": [1, 2], "random": [1, 2], "fastv": [2], "sparsevlm": [0, 2]}
    policy = msgspec.convert(toy["policy"] | {"method": "all", "prune_layers": layers}, Policy)
    schedule = plan_request(
        policy, visual_tokens=30, moe_layers=info.moe_layers, top_k=info.top_k, method=method, retention=None
    )
    chunk = Chunk(0, np.zeros((40, info.hidden_size), np.float32), np.arange(3, 33, dtype=np.int32), schedule)
    feeds = signatures.feeds(info, Call(policy, [chunk], [7], alpha=0.5, seed=1))
    inputs = signatures.language_model_inputs(info, policy, "float32")
    caches = signatures.cache_inputs(info, policy, "float32")
    assert [t.name for t in inputs] == [*feeds, *(t.name for t in caches)]
    for tensor in inputs[: len(feeds)]:
        assert feeds[tensor.name].dtype == tensor.dtype
        fixed = [(a, b) for a, b in zip(feeds[tensor.name].shape, tensor.shape, strict=True) if isinstance(b, int)]
        assert all(a == b for a, b in fixed)
    assert signatures.cached_rows(info, policy, chunk)[0] == 40


def test_signatures_by_hand() -> None:
    found = signatures.signatures(toy_manifest("deepseek_vl2"))
    assert found["vision"].inputs == [
        Tensor("pixel_values", ("tiles", 3, 16, 16), "float32"),
        Tensor("layout_index", ("V",), "int32"),
    ]
    assert found["vision"].outputs == [Tensor("image_features", ("", 8), "float32")]
    assert found["embedding"].inputs == [Tensor("input_ids", ("T",), "int32")]
    inputs = {tensor.name: tensor for tensor in found["language_model"].inputs}
    assert inputs["alpha"].shape == (2,) and inputs["visual_top_k"].shape == (3,)
    assert inputs["past_key_values.3.value"] == Tensor("past_key_values.3.value", (1, 2, "S2", 6), "float32")
    outputs = {tensor.name: tensor for tensor in found["language_model"].outputs}
    assert outputs["logits"].shape == ("", 10) and "kept_index.1" in outputs and "kept_index.2" not in outputs
    assert outputs["present.3.value"].shape == (1, 2, "", 6)


def test_only_deepseek_has_a_layout() -> None:
    assert [t.name for t in signatures.signatures(toy_manifest("internvl3_5"))["vision"].inputs] == ["pixel_values"]
    assert signatures.vision_inputs(24, "float16", has_layout=True)[0].shape == ("tiles", 3, 24, 24)


def site(layer: int) -> Site:
    return Site(layer=layer, point="moe", methods=("fastmmoe",))


@pytest.mark.parametrize(
    ("sites", "groups"),
    [
        ((), [(0, 1, 2, 3)]),
        ((1, 2), [(0, 1), (2,), (3,)]),
        ((0,), [(0,), (1, 2, 3)]),
        ((1, 1), [(0, 1), (2, 3)]),
        ((3,), [(0, 1, 2, 3)]),
        ((2, 3), [(0, 1, 2), (3,)]),
    ],
)
def test_layers_share_a_cache_length_up_to_a_site(sites: tuple[int, ...], groups: list[tuple[int, ...]]) -> None:
    assert list(signatures.layer_groups(4, [site(layer) for layer in sites])) == groups


def test_caches_are_empty_at_first() -> None:
    manifest = toy_manifest("deepseek_vl2")
    caches = signatures.empty_caches(manifest.language_model, manifest.policy, "float16")
    assert list(caches) == [t.name for t in signatures.cache_inputs(manifest.language_model, manifest.policy, "")]
    key = caches["past_key_values.0.key"]
    assert (key.shape, key.dtype) == ((1, 2, 0, 6), np.float16)
    ids = caches["past_sequence_ids.2"]
    assert (ids.shape, ids.dtype) == ((0,), np.int32)


def test_a_layer_caches_what_the_sites_before_it_leave() -> None:
    manifest = toy_manifest("deepseek_vl2")
    info, policy = manifest.language_model, manifest.policy
    schedule = plan_request(policy, visual_tokens=16, moe_layers=info.moe_layers, top_k=info.top_k, retention=0.25)
    assert schedule.keep == (8, 4)
    chunk = Chunk(0, np.zeros((20, 8)), np.arange(16), schedule)
    assert signatures.cached_rows(info, policy, chunk).tolist() == [20, 20, 12, 8]
    text = Chunk(0, np.zeros((20, 8)), np.arange(0), schedule.for_text())
    assert signatures.cached_rows(info, policy, text).tolist() == [20] * 4
