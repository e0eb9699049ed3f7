# SPDX-License-Identifier: Apache-2.0
"""Rates of this machine: those of what computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fastmmoe.runtime.bundle.storage import ExpertsInfo, LinearInfo, LinearsInfo
from fastmmoe.runtime.cost import rates
from fastmmoe.runtime.cost.rates import least_working_set, matrix_bytes, rates_here, shortest_numbers
from fastmmoe.runtime.cost.roofline import Rates
from fastmmoe.runtime.machines.gpu import Gpu
from tests.support.manifests import toy_manifest


def stored(weight_format: Any) -> LinearInfo:
    return LinearInfo(weight_format=weight_format, group_size=4, zero_points=False)


FLOAT = stored("float")


def test_a_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bytes of a step, and the numbers of the bundle."""
    manifest = toy_manifest("deepseek_vl2")
    monkeypatch.setattr(rates, "peak_flops", lambda numbers: {"float32": 5.0, "bfloat16": 7.0}[numbers])
    monkeypatch.setattr(rates, "read_bandwidth", lambda size: 2.0 * size)
    bandwidth = 2.0 * least_working_set(manifest)
    assert rates_here("cpu", manifest) == Rates(5.0, bandwidth, "cores, width and clock; memory measured")
    found = rates_here("cpu", replace(manifest, cache_dtype="bfloat16"))
    assert found is not None and found.flops == 7.0


def test_the_least_working_set_is_that_of_a_step() -> None:
    manifest = toy_manifest("deepseek_vl2")
    parts = matrix_bytes(manifest)
    assert parts["head"] + parts["attention"] < least_working_set(manifest) < sum(parts.values())


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (Gpu("NVIDIA L4", 89), Rates(121e12, 300e9, "data sheet")),
        (Gpu("NVIDIA T4", 75), None),
        (None, None),
    ],
)
def test_a_gpu_has_its_data_sheets(
    gpu: Gpu | None, expected: Rates | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = toy_manifest("deepseek_vl2")
    monkeypatch.setattr(rates, "find_gpu", lambda: gpu)
    assert rates_here("tensorrt", manifest, tmp_path) == rates_here("cuda", manifest, tmp_path) == expected


def test_matrices_of_a_bundle() -> None:
    manifest = toy_manifest("deepseek_vl2")
    found, info = matrix_bytes(manifest), manifest.language_model
    assert found["head"] == found["embedding"] == 4 * info.hidden_size * info.vocab_size
    assert found["routed_experts"] == 4 * len(info.moe_layers) * info.num_experts * 3 * info.hidden_size * (
        info.moe_intermediate_size
    )


@pytest.mark.parametrize(
    ("changed", "numbers"),
    [
        ({}, "float32"),
        ({"dtype": "bf16"}, "bfloat16"),
        ({"cache_dtype": "bfloat16"}, "bfloat16"),
        ({"experts": ExpertsInfo(weight_format="int4", group_size=4, zero_points=False)}, "int8"),
        ({"linears": LinearsInfo(dense=FLOAT, head=FLOAT, vision=stored("bf16"))}, "bfloat16"),
        ({"linears": LinearsInfo(dense=FLOAT, head=stored("int4"), vision=FLOAT)}, "int8"),
    ],
)
def test_the_shortest_numbers_of_a_bundle(changed: dict[str, Any], numbers: str) -> None:
    assert shortest_numbers(replace(toy_manifest("deepseek_vl2"), **changed)) == numbers
