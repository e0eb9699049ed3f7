# SPDX-License-Identifier: Apache-2.0
"""Rates of this machine: those of what computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.cost import rates
from fastmmoe.runtime.cost.rates import matrix_bytes, rates_here
from fastmmoe.runtime.cost.roofline import Rates
from fastmmoe.runtime.machines.gpu import Gpu
from tests.support.manifests import toy_manifest


def test_a_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "peak_flops", lambda: 5.0)
    monkeypatch.setattr(rates, "read_bandwidth", lambda size: 2.0 * size)
    assert rates_here("cpu", 100) == Rates(5.0, 200.0, "cores, width and clock; memory measured")


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
    monkeypatch.setattr(rates, "find_gpu", lambda: gpu)
    assert rates_here("tensorrt", 100, tmp_path) == rates_here("cuda", 100, tmp_path) == expected


def test_matrices_of_a_bundle() -> None:
    manifest = toy_manifest("deepseek_vl2")
    found, info = matrix_bytes(manifest), manifest.language_model
    assert found["head"] == found["embedding"] == 4 * info.hidden_size * info.vocab_size
    assert found["routed_experts"] == 4 * len(info.moe_layers) * info.num_experts * 3 * info.hidden_size * (
        info.moe_intermediate_size
    )
