# SPDX-License-Identifier: Apache-2.0
"""How near packed weights are, how large, and which layers have them."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops import LINEAR, linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.runtime.bundle.storage import LinearInfo
from fastmmoe.runtime.cost.weights import linear_bytes
from tests.support.linear_cases import IN_ROWS, PACKINGS

STEPS = {"bf16": 2.0**-8, "int8": 1 / 127, "int4": 1 / 7}
"""Greatest distance of rounded weights, of the greatest of a group."""


@pytest.mark.parametrize("packing", [*PACKINGS, *IN_ROWS], ids=str)
def test_packed_weights_stand_for_the_weights(packing: LinearPacking) -> None:
    N, K = 37, 150 if packing.is_tiled else 152
    weights = np.random.default_rng(1).uniform(-1, 1, (N, K)).astype(np.float32)
    found = packing.round(weights)
    assert found.shape == (N, K)
    assert 0 < np.abs(found - weights).max() <= STEPS[packing.weight_format]
    ones = np.eye(K, dtype=np.float32)
    attributes = packing.attributes(N, has_bias=False)
    given = {"x": ones, **packing.pack(weights)}
    inputs = {tensor.name: given[tensor.name] for tensor in LINEAR.inputs_for(attributes)}
    np.testing.assert_array_equal(linear_reference(inputs, attributes), found.T)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_sizes_are_those_of_the_parts(packing: LinearPacking) -> None:
    stored = LinearInfo(
        weight_format=packing.weight_format, group_size=packing.group_size, zero_points=packing.zero_points
    )
    for N, K in ((1, 1), (16, 32), (37, 150), (40, 129)):
        parts = packing.pack(np.ones((N, K), np.float32))
        assert {name: (values.dtype.name, values.shape) for name, values in parts.items()} == packing.parts(N, K)
        bytes_of_parts = sum(values.nbytes for values in parts.values())
        assert packing.bytes(N, K) == linear_bytes(N, K, stored, is_tiled=True) == bytes_of_parts


@pytest.mark.parametrize("packing", IN_ROWS, ids=str)
def test_sizes_in_rows(packing: LinearPacking) -> None:
    for N, K in ((1, 8), (16, 32), (37, 152)):
        parts = packing.pack(np.ones((N, K), np.float32))
        assert {name: (values.dtype.name, values.shape) for name, values in parts.items()} == packing.parts(N, K)
        assert packing.bytes(N, K) == sum(values.nbytes for values in parts.values())


def test_routers_are_never_packed() -> None:
    packings = LinearPackings(dense=PACKINGS[1], head=PACKINGS[2], vision=PACKINGS[0])
    layer = "language_model.layers.1."
    assert packings.of(f"{layer}mlp.experts.router.weight") is None
    assert packings.of(f"{layer}self_attn.q_proj.weight") is PACKINGS[1]
    assert packings.of(f"{layer}mlp.shared_experts.up_proj.weight") is PACKINGS[1]
    assert packings.of("language_model.lm_head.weight") is PACKINGS[2]
    assert packings.of("vision.blocks.0.attn.qkv.weight") is PACKINGS[0]
