# SPDX-License-Identifier: Apache-2.0
"""Weights of a toy by hand, and bytes of packed experts as the packing makes them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.runtime.bundle.storage import ExpertsInfo, LinearInfo
from fastmmoe.runtime.cost.weights import count_weights, graph_bytes, layer_expert_bytes, linear_bytes, weights_bytes
from tests.support.manifests import toy_manifest
from tests.support.moe_layouts import KINDS, Kind, stored_case


def test_parts_of_a_toy_by_hand() -> None:
    """H 8, 4 layers; see tests/support/manifests.py."""
    manifest = toy_manifest("internvl3_5")
    info, vision = manifest.language_model, manifest.vision
    counts = count_weights(info, vision, {"norms": 7, "attention": 1})
    heads = info.heads * info.query_key_dim + info.kv_heads * (info.query_key_dim + info.value_dim)
    moe = len(info.moe_layers)
    assert counts["attention"] == info.layers * 8 * (heads + info.heads * info.value_dim) + 1
    assert counts["routed_experts"] == moe * info.num_experts * 3 * 8 * info.moe_intermediate_size
    assert counts["router"] == moe * info.num_experts * 8
    assert counts["dense"] == (info.layers - moe) * 3 * 8 * info.dense_intermediate_size
    assert counts["head"] == counts["embedding"] == info.vocab_size * 8
    assert counts["norms"] == 7
    blocks = vision.layers * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width)
    assert counts["vision"] == vision.patch_inputs * vision.width + blocks + vision.projector_inputs * 8 + 64


def test_latent_attention_by_hand() -> None:
    """Queries, latent and rotated part, latents to heads, output: 16 heads of 128 + 64, values of 128, rank 512."""
    info = msgspec.structs.replace(
        toy_manifest("deepseek_vl2").language_model,
        hidden_size=2048,
        heads=16,
        query_key_dim=192,
        value_dim=128,
        kv_lora_rank=512,
        rope_dim=64,
        layers=1,
    )
    expected = 2048 * 16 * 192 + 2048 * (512 + 64) + 512 * 16 * (128 + 128) + 16 * 128 * 2048
    assert count_weights(info, toy_manifest("deepseek_vl2").vision, {})["attention"] == expected


@pytest.mark.parametrize(
    ("dtype", "activations", "expected"),
    [("fp32", "float32", (4, 4)), ("fp16", "float16", (2, 2)), ("bf16", "float32", (2, 4))],
)
def test_bytes_follow_the_types_of_a_bundle(dtype: str, activations: str, expected: tuple[int, int]) -> None:
    """The router is float32 in every bundle; on a CPU a 16-bit type stores experts alone."""
    values: dict[str, Any] = {"dtype": dtype, "activation_dtype": activations}
    manifest = msgspec.structs.replace(toy_manifest("internvl3_5"), **values)
    counts = count_weights(manifest.language_model, manifest.vision, {"rotary": 3})
    found = weights_bytes(manifest, counts)
    assert found["routed_experts"] == expected[0] * counts["routed_experts"]
    assert found["attention"] == expected[1] * counts["attention"]
    assert (found["router"], found["rotary"]) == (4 * counts["router"], 12)
    graphs = graph_bytes(found)
    assert graphs["vision"] == found["vision"] and graphs["embedding"] == found["embedding"]
    assert sum(graphs.values()) == sum(found.values())


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize(
    ("weight_format", "zero_points"),
    [("int8", False), ("int8", True), ("int4", False), ("int4", True), ("fp8", False)],
)
def test_packed_experts_are_as_large_as_the_packing_makes_them(
    weight_format: Literal["int8", "int4", "fp8"], group_size: int, zero_points: bool
) -> None:
    H, width, E = 96, 64, 2
    info = msgspec.structs.replace(
        toy_manifest("internvl3_5").language_model, hidden_size=H, moe_intermediate_size=width, num_experts=E
    )
    packing = Packing(weight_format, group_size, zero_points)
    expected = 0
    for shape in ((E, 2 * width, H), (E, H, width)):
        packed = packing.quantise(np.ones(shape, np.float32))
        expected += packed.values.nbytes + packed.scale.nbytes + (0 if packed.zero is None else packed.zero.nbytes)
    experts = ExpertsInfo(weight_format=weight_format, group_size=group_size, zero_points=zero_points)
    assert layer_expert_bytes(info, experts, "fp16") == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.has("tiles")], ids=str)
def test_tiles_are_filled_up(kind: Kind) -> None:
    """Of sizes that are no multiples of panels, words and groups; gate and up have panels of their own."""
    H, width, E = 72, 40, 2
    info = msgspec.structs.replace(
        toy_manifest("internvl3_5").language_model, hidden_size=H, moe_intermediate_size=width, num_experts=E
    )
    inputs, attributes = stored_case(kind, "tiles", H=H, I=width, E=E)
    expected = sum(array.nbytes for name, array in inputs.items() if name.startswith(("gate_up", "down")))
    experts = ExpertsInfo(
        weight_format=attributes["weight_format"],
        group_size=kind.group_size,
        zero_points=bool(kind.zero_points),
    )
    assert layer_expert_bytes(info, experts, "bf16", is_tiled=True) == expected


@pytest.mark.parametrize(("target", "is_tiled"), [("cpu", True), ("jetson-agx-orin", False)])
def test_linear_layers_are_as_large_as_the_target_stores_them(target: str, is_tiled: bool) -> None:
    """The toy's matrices fill no panel of 16 rows, and no word of int4."""
    packing = LinearPacking("int4", 32, zero_points=True, is_tiled=is_tiled)
    stored = LinearInfo(weight_format="int4", group_size=32, zero_points=True)
    for N, K in ((1, 8), (37, 152), (10, 24)):
        assert linear_bytes(N, K, stored, is_tiled=is_tiled) == packing.bytes(N, K)
    manifest = toy_manifest("internvl3_5", target=target)
    linears = msgspec.structs.replace(manifest.linears, dense=stored, head=stored)
    manifest = msgspec.structs.replace(manifest, activation_dtype="float16", linears=linears)
    info = manifest.language_model
    found = weights_bytes(manifest, count_weights(info, manifest.vision, {"attention": 5}))
    assert found["head"] == packing.bytes(info.vocab_size, info.hidden_size)
    shapes = [(24, 8), (12, 8), (12, 8), (8, 24)]
    assert found["attention"] == info.layers * sum(packing.bytes(*shape) for shape in shapes) + 5 * 2
