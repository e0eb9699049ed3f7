# SPDX-License-Identifier: Apache-2.0
"""Caches by hand; estimates grow with what they are for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.cost.memory import cache_bytes, cache_capacities, layer_rows, vision_bytes, workspace_bytes
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.manifests import toy_manifest


def manifest(family: str = "internvl3_5") -> Manifest:
    found = toy_manifest(family)
    return msgspec.structs.replace(
        found, processor=msgspec.structs.replace(found.processor, max_position_embeddings=4096)
    )


def schedule(found: Manifest, retention: float) -> Any:
    info = found.language_model
    counts: Any = {"visual_tokens": 400, "moe_layers": info.moe_layers, "top_k": info.top_k}
    return plan_request(found.policy, **counts, retention=retention)


def test_capacities_follow_what_pruning_leaves() -> None:
    found = manifest()
    rows = layer_rows(found, schedule(found, 0.25), 500)
    assert rows[0] == 500 and rows[-1] == 100 + 100
    capacities = cache_capacities(found, schedule(found, 0.25), 500, 40)
    assert (capacities[0], capacities[-1]) == (768, 256)
    assert cache_capacities(found, schedule(found, 1.0), 500, 40) == [768] * len(capacities)
    # The longest sequence is the most that a cache has room for.
    assert cache_capacities(found, schedule(found, 1.0), 500, 10_000) == [4096] * len(capacities)


def test_bytes_of_caches_by_hand() -> None:
    found = manifest()
    info = found.language_model
    groups = len(cache_capacities(found, schedule(found, 1.0), 500, 40))
    heads, width = info.cache_shape
    plain = msgspec.structs.replace(found, language_model=msgspec.structs.replace(info, sliding_layers=()))
    expected = info.layers * 2 * heads * 256 * width * 4
    assert cache_bytes(plain, [256] * groups) == expected
    assert cache_bytes(plain, [256] * groups, sequences=3) == 3 * expected
    assert cache_bytes(msgspec.structs.replace(plain, cache_dtype="bfloat16"), [256] * groups) == expected // 2


@pytest.mark.parametrize("family", ["deepseek_vl2", "internvl3_5"])
def test_estimates_grow_with_tiles_and_tokens(family: str) -> None:
    found = manifest(family)

    def limits(tiles: int, tokens: int) -> Limits:
        return Limits(max_tokens=tokens, max_visual=tokens // 2, max_cache=tokens, max_tiles=tiles, max_batch=1)

    assert vision_bytes(found, limits(4, 100), 2, 16) > 3 * vision_bytes(found, limits(1, 10), 2, 16) > 0
    logits = 4 * found.language_model.vocab_size
    few, many = (workspace_bytes(found, limits(1, tokens)) - logits for tokens in (50, 150))
    assert many == 3 * few > 0
