# SPDX-License-Identifier: Apache-2.0
"""What parts demand: they add up to what the whole is counted as, and each reads its own weights."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.demands import Demand, head_demand, layer_demands, sum_of, vision_demands
from fastmmoe.runtime.cost.flops import PrefillFlops, count_prefill, vision_flops
from fastmmoe.runtime.cost.rates import matrix_bytes
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from tests.support.manifests import toy_manifest

T, V = 60, 40


@pytest.fixture
def manifest() -> Manifest:
    return toy_manifest("deepseek_vl2")


def schedule(manifest: Manifest, retention: float) -> Schedule:
    info = manifest.language_model
    counts: Any = {"visual_tokens": V, "moe_layers": info.moe_layers, "top_k": info.top_k}
    return plan_request(manifest.policy, **counts, retention=retention)


def by_part(manifest: Manifest, plan: Schedule, *arguments: Any) -> dict[str, Demand]:
    layers = layer_demands(manifest, matrix_bytes(manifest), plan, *arguments)
    return {part: sum_of(layer[part] for layer in layers) for part in layers[0]}


def test_parts_of_a_prefill_add_up_to_its_flops(manifest: Manifest) -> None:
    plan = schedule(manifest, 0.5)
    counted = count_prefill(manifest.language_model, manifest.policy, plan, T)
    found = by_part(manifest, plan, T)
    for field in fields(PrefillFlops):
        # The final norm's row is not of a layer, and softmax belongs to other parts.
        if field.name in found and field.name != "norms":
            assert found[field.name].flops == getattr(counted, field.name), field.name
    assert head_demand(manifest, matrix_bytes(manifest)).flops == counted.head
    assert found["pruning"].flops > 0 and found["pruning"].bytes == 0


def test_every_part_reads_its_own_weights(manifest: Manifest) -> None:
    """A long prompt reads every expert; the first layer of the toy is dense."""
    weights, info = matrix_bytes(manifest), manifest.language_model
    found = by_part(manifest, schedule(manifest, 1.0), 4000)
    read = {part: demand.bytes for part, demand in found.items() if demand.bytes}
    expected = {
        "projections": weights["attention"],
        **{part: weights[part] for part in ("router", "routed_experts", "shared_experts", "dense")},
    }
    assert read.keys() == {part for part, size in expected.items() if size}
    for part, size in read.items():
        assert size == pytest.approx(expected[part], abs=2 * info.layers), part
    assert head_demand(manifest, weights).bytes == weights["head"]


def test_a_step_reads_the_caches_of_every_sequence(manifest: Manifest) -> None:
    info, text = manifest.language_model, schedule(manifest, 1.0).for_text()
    past = [10 * (layer + 1) for layer in range(info.layers)]
    row = info.cache_shape[0] * info.cache_shape[1] * len(info.cache_parts) * 4
    one, three = (by_part(manifest, text, 1, past, count) for count in (1, 3))
    assert one["attention"].bytes == sum(past) * row
    assert three["attention"].bytes == 3 * one["attention"].bytes
    assert three["projections"] == Demand(3 * one["projections"].flops, one["projections"].bytes)


def test_packed_vision_by_part_is_the_whole_that_is_counted(manifest: Manifest) -> None:
    """Of int8 the patches stay as they are."""
    packed = msgspec.structs.replace(manifest.linears.vision, weight_format="int8", group_size=0)
    stored = msgspec.structs.replace(manifest, linears=msgspec.structs.replace(manifest.linears, vision=packed))
    found, plain = vision_demands(stored, 1), vision_demands(manifest, 1)
    assert sum_of(found.values()).bytes == matrix_bytes(stored)["vision"] < matrix_bytes(manifest)["vision"]
    assert found["patches"] == plain["patches"]
    assert all(found[part].bytes < plain[part].bytes for part in ("attention", "mlp", "projector"))


def test_vision_by_part(manifest: Manifest) -> None:
    info, width = manifest.vision, manifest.language_model.hidden_size
    found = vision_demands(manifest, 3)
    assert list(found) == ["patches", "attention", "mlp", "projector"]
    whole = sum_of(found.values())
    assert whole.flops == vision_flops(info, width, 3)
    assert whole.bytes == matrix_bytes(manifest)["vision"]
    rows = info.rows_per_tile
    assert found["mlp"].flops == 3 * info.layers * 4 * rows * info.width * info.mlp_width
    assert found["patches"].bytes == 4 * info.patch_inputs * info.width
    assert sum_of(vision_demands(manifest, 0).values()) == Demand()
