# SPDX-License-Identifier: Apache-2.0
"""Signatures of graphs by hand; the feeds of a call are the inputs of the graph; groups of caches."""

from __future__ import annotations

import itertools

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
    past = [[7, 0], [6, 0], [5, 2], [4, 0]]
    feeds = signatures.feeds(info, Call(policy, [chunk], [7], past, alpha=0.5, seed=1))
    inputs = signatures.language_model_inputs(info, policy, "float32", "bfloat16")
    caches = signatures.cache_inputs(info, policy, "bfloat16")
    assert [t.name for t in inputs] == [*feeds, *(t.name for t in caches)]
    for tensor in inputs[: len(feeds)]:
        assert feeds[tensor.name].dtype == tensor.dtype
        fixed = [(a, b) for a, b in zip(feeds[tensor.name].shape, tensor.shape, strict=True) if isinstance(b, int)]
        assert all(a == b for a, b in fixed)
    assert signatures.cached_rows(info, policy, chunk)[0] == 40
    assert len(signatures.layer_groups(info.layers, policy.sites)) == len(past)
    assert [feeds[f"past_lengths.{g}"].tolist() for g in range(len(past))] == past


def test_what_steps_have_in_common_is_made_once() -> None:
    """Prompt, steps, another sequence's step, another alpha: each is fed what it is fed alone."""
    manifest = toy_manifest("deepseek_vl2")
    info, policy = manifest.language_model, manifest.policy
    prompt = plan_request(policy, visual_tokens=4, moe_layers=info.moe_layers, top_k=info.top_k)
    feeding, found = signatures.Feeding(info, policy), []
    text, index = prompt.for_text(), np.arange(2, 6, dtype=np.int32)
    asked = [
        (0, prompt, 0.5),
        (0, prompt, 0.5),
        *[(0, text, 0.5)] * 3,
        (1, text, 0.5),
        (1, text, 0.3),
        (0, prompt, 0.3),
    ]
    for number, (sequence, schedule, alpha) in enumerate(asked):
        rows = 9 if schedule is prompt else 1
        embeds = np.full((rows, info.hidden_size), number, np.float32)
        chunk = Chunk(sequence, embeds, index if schedule is prompt else index[:0], schedule)
        call = Call(policy, [chunk], [number], [[number, 0]] * 3, alpha, number)
        found.append(feeding.feeds(call))
        alone = signatures.feeds(info, call)
        assert list(found[-1]) == list(alone)
        for name, value in alone.items():
            assert value.dtype == found[-1][name].dtype and np.array_equal(value, found[-1][name]), name
    moving = {"inputs_embeds", "position_ids", "past_lengths.0", "past_lengths.1", "past_lengths.2"}
    shared = [{name for name in after if after[name] is before[name]} for before, after in itertools.pairwise(found)]
    steady = found[0].keys() - moving
    assert [shared[place] == steady for place in range(7)] == [False, False, True, True, False, False, False]
    assert not any(names & moving for names in shared) and not any(shared[place] for place in (0, 1, 4, 5, 6))


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
    assert inputs["past_key_values.3.value"] == Tensor("past_key_values.3.value", ("B", 2, "C2", 6), "float32")
    outputs = {tensor.name: tensor for tensor in found["language_model"].outputs}
    assert outputs["logits"].shape == ("", 10) and "kept_index.1" in outputs and "kept_index.2" not in outputs
    assert outputs["present.3.value"].shape == ("", 2, "", 6)
    assert outputs["present_lengths.2"] == Tensor("present_lengths.2", ("",), "int32")
    assert {name: (outputs[name].shape, outputs[name].dtype) for name in ("next_ids", "next_position_ids")} == {
        "next_ids": (("",), "int32"),
        "next_position_ids": (("",), "int32"),
    }
    assert "past_position_ids.0" not in inputs and "present_position_ids.0" not in outputs


def test_caches_have_a_type_of_their_own() -> None:
    found = signatures.signatures(toy_manifest("deepseek_vl2", cache_dtype="bfloat16"))["language_model"]
    for tensors in (found.inputs, found.outputs):
        types = {tensor.name: tensor.dtype for tensor in tensors}
        of_caches = {dtype for name, dtype in types.items() if name.startswith(("past_key_values.", "present."))}
        others = {dtype for name, dtype in types.items() if not name.startswith(("past_key_values.", "present."))}
        assert of_caches == {"bfloat16"} and others <= {"float32", "int32", "int8"} and "float32" in others


def test_what_a_call_writes_to_is_an_output_of_one_shape() -> None:
    """Of a model whose layers 1 and 3 slide, with sites in layers 0 and 2: positions in the second group and the
    third."""
    document = manifest_document("internvl3_5")
    document["language_model"] |= {"sliding_layers": [1, 3], "sliding_window": 4, "moe_layers": [0, 1, 2, 3]}
    info = msgspec.convert(document["language_model"], LanguageModelInfo)
    policy = msgspec.convert(document["policy"] | {"prune_layers": {"fastmmoe": [0, 2]}}, Policy)
    caches = signatures.cache_inputs(info, policy, "float16")
    of_layers = [f"past_key_values.{i}.{part}" for i in range(4) for part in ("key", "value")]
    written = {*of_layers, "past_position_ids.1", "past_position_ids.2"}
    assert {cache.name for cache in caches} == written and len(caches) == len(written)
    found = {tensor.name: tensor for tensor in signatures._language_model_outputs(info, policy, "float16")}
    for cache in caches:
        output = found[cache.name.replace("past_key_values", "present").replace("past_", "present_")]
        fixed = tuple("" if isinstance(size, str) else size for size in cache.shape)
        assert (output.shape, output.dtype) == (fixed, cache.dtype)


def test_outputs_that_the_runtime_looks_at() -> None:
    policy = toy_manifest("deepseek_vl2").policy
    assert signatures.outputs_of_call(policy) == ["kept_index.0", "kept_index.1"]
    assert signatures.outputs_of_call(msgspec.structs.replace(policy, method="none", prune_layers={})) == []


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


def test_caches_have_room_by_group() -> None:
    """Sites in layers 1 and 2; layers 0 and 3 slide, so the first and the last group have positions."""
    manifest = toy_manifest("deepseek_vl2")
    info = msgspec.structs.replace(manifest.language_model, sliding_layers=(0, 3), sliding_window=4)
    shapes = signatures.cache_shapes(info, manifest.policy, "float16", 5, (512, 256, 768))
    assert list(shapes) == [t.name for t in signatures.cache_inputs(info, manifest.policy, "")]
    assert shapes == {
        **{
            f"past_key_values.{i}.{part}": ((5, 2, capacity, 6), "float16")
            for i, capacity in enumerate((512, 512, 256, 768))
            for part in ("key", "value")
        },
        "past_position_ids.0": ((5, 512), "int32"),
        "past_position_ids.2": ((5, 768), "int32"),
    }


def test_a_latent_is_one_head() -> None:
    manifest = toy_manifest("deepseek_vl2")
    info = msgspec.structs.replace(manifest.language_model, cache_parts=("latent",), cache_shape=(1, 40))
    shapes = signatures.cache_shapes(info, manifest.policy, "float16", 2, (512, 256, 256))
    assert shapes["past_key_values.3.latent"] == ((2, 1, 256, 40), "float16") and len(shapes) == 4


def test_a_layer_caches_what_the_sites_before_it_leave() -> None:
    manifest = toy_manifest("deepseek_vl2")
    info, policy = manifest.language_model, manifest.policy
    schedule = plan_request(policy, visual_tokens=16, moe_layers=info.moe_layers, top_k=info.top_k, retention=0.25)
    assert schedule.keep == (8, 4)
    chunk = Chunk(0, np.zeros((20, 8)), np.arange(16), schedule)
    assert signatures.cached_rows(info, policy, chunk).tolist() == [20, 20, 12, 8]
    text = Chunk(0, np.zeros((20, 8)), np.arange(0), schedule.for_text())
    assert signatures.cached_rows(info, policy, text).tolist() == [20] * 4
