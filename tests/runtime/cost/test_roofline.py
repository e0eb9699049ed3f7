# SPDX-License-Identifier: Apache-2.0
"""Least times of a toy by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.demands import Demand
from fastmmoe.runtime.cost.flops import count_prefill, vision_flops
from fastmmoe.runtime.cost.roofline import Rates, Work, block, decode_work, flat_retention, prefill_work, vision_work
from fastmmoe.runtime.cost.weights import count_weights, weights_bytes
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from tests.support.manifests import toy_manifest

SLOW_MEMORY, SLOW_PRODUCTS = Rates(1e15, 1e3, "test"), Rates(1e3, 1e15, "test")


@pytest.fixture
def manifest() -> Manifest:
    return toy_manifest("deepseek_vl2")


def parts_of(manifest: Manifest) -> dict[str, int]:
    return weights_bytes(manifest, count_weights(manifest.language_model, manifest.vision, {}))


def schedule(manifest: Manifest, retention: float, visual: int = 40) -> Schedule:
    info = manifest.language_model
    counts: Any = {"visual_tokens": visual, "moe_layers": info.moe_layers, "top_k": info.top_k}
    return plan_request(manifest.policy, **counts, retention=retention)


def test_a_block_takes_the_greater_of_computing_and_reading() -> None:
    rates = Rates(2e3, 1e3, "test")
    assert block(rates, Demand(4000, 1000)) == Work(4000, 1000, 2000.0, 1000.0, 2000.0)
    assert block(rates, Demand(1000, 1000)).ms == 1000.0
    assert (block(rates, Demand(4000, 1000)) + block(rates, Demand(1000, 1000))).ms == 3000.0


def test_a_prefill_of_products_takes_its_flops(manifest: Manifest) -> None:
    plan = schedule(manifest, 0.5)
    work = prefill_work(manifest, parts_of(manifest), SLOW_PRODUCTS, plan, 60)
    total = count_prefill(manifest.language_model, manifest.policy, plan, 60).total
    assert work.flops == total
    assert work.ms == pytest.approx(total)


def test_a_long_prompt_reads_every_weight_but_the_embedding(manifest: Manifest) -> None:
    parts = parts_of(manifest)
    work = prefill_work(manifest, parts, SLOW_MEMORY, schedule(manifest, 1.0, 400), 800)
    read = sum(parts.values()) - parts["embedding"] - parts["vision"]
    assert work.ms == pytest.approx(read, rel=1e-3)
    assert work.bytes == pytest.approx(read, rel=1e-3)


def test_a_token_reads_its_experts_and_the_caches(manifest: Manifest) -> None:
    info, parts = manifest.language_model, parts_of(manifest)
    text = schedule(manifest, 1.0).for_text()
    few, many = (decode_work(manifest, parts, SLOW_MEMORY, text, [rows] * info.layers) for rows in (0, 100))
    experts = parts["routed_experts"] * info.top_k // info.num_experts
    others = sum(parts.values()) - parts["embedding"] - parts["vision"] - parts["routed_experts"]
    assert few.bytes == pytest.approx(others + experts, rel=1e-2)
    row = info.cache_shape[0] * info.cache_shape[1] * len(info.cache_parts) * 4
    assert many.bytes - few.bytes == 100 * info.layers * row


def test_a_sliding_layer_reads_its_window() -> None:
    manifest = toy_manifest("internvl3_5")
    info = msgspec.structs.replace(manifest.language_model, sliding_layers=(0,), sliding_window=10)
    sliding = msgspec.structs.replace(manifest, language_model=info)
    text = schedule(manifest, 1.0).for_text()
    found, plain = (
        decode_work(m, parts_of(m), SLOW_MEMORY, text, [100] * info.layers).bytes
        for m in (
            sliding,
            msgspec.structs.replace(manifest, language_model=msgspec.structs.replace(info, sliding_layers=())),
        )
    )
    assert plain - found == 90 * 2 * info.cache_shape[0] * info.cache_shape[1] * 4


def test_experts_of_a_site_in_front_of_the_block_are_those_of_the_rows_that_are_left(manifest: Manifest) -> None:
    """The last layer prunes, so that no other block has fewer rows. All rows are visual."""
    info, parts = manifest.language_model, parts_of(manifest)
    last = {"fastmmoe": (info.layers - 1,)}
    policy = msgspec.structs.replace(manifest.policy, prune_layers=last, stage_exponents=(1.0,), visual_top_k=(4, 4, 4))
    pruned = msgspec.structs.replace(manifest, policy=policy)
    (kept,) = schedule(pruned, 0.25, 12).kept_visual_tokens
    assert 0 < kept < 12
    many, few = (
        prefill_work(pruned, parts, SLOW_MEMORY, schedule(pruned, retention, 12), 12).bytes for retention in (1, 0.25)
    )
    missed = 1 - info.top_k / info.num_experts
    expected = parts["routed_experts"] / len(info.moe_layers) * (missed**kept - missed**12)
    assert many - few == pytest.approx(expected, abs=2)


def test_vision(manifest: Manifest) -> None:
    parts = parts_of(manifest)
    work = vision_work(manifest, parts, SLOW_PRODUCTS, 3)
    assert work.flops == vision_flops(manifest.vision, manifest.language_model.hidden_size, 3) == work.ms
    assert (work.bytes, vision_work(manifest, parts, SLOW_PRODUCTS, 0)) == (parts["vision"], Work())


def test_the_retention_below_which_time_stops_falling() -> None:
    assert flat_retention(lambda r: max(1.0, 4 * r)) == 0.275
    assert flat_retention(lambda r: 1.0) == 1.0
    assert flat_retention(lambda r: r) == 0.0001


def test_sequences_of_a_call_share_the_weights(manifest: Manifest) -> None:
    info, parts = manifest.language_model, parts_of(manifest)
    plan, text = schedule(manifest, 0.5), schedule(manifest, 1.0).for_text()
    one, three = (prefill_work(manifest, parts, SLOW_PRODUCTS, plan, 60, None, count) for count in (1, 3))
    assert three.flops == 3 * one.flops and three.ms == pytest.approx(3 * one.ms)
    rows = [100] * info.layers
    row = info.layers * 100 * info.cache_shape[0] * info.cache_shape[1] * len(info.cache_parts) * 4
    steps = {
        count: decode_work(manifest, parts, SLOW_MEMORY, text, rows, count).bytes - count * row for count in (1, 3)
    }
    missed = 1 - info.top_k / info.num_experts
    more = parts["routed_experts"] * (missed - missed**3)
    assert steps[3] - steps[1] == pytest.approx(more, abs=len(info.moe_layers))
