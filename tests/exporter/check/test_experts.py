# SPDX-License-Identifier: Apache-2.0
"""Experts' weights of an engine's graph: floats as they are written, integers as what those of the first layer mean."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.check.experts import Experts
from fastmmoe.exporter.ops.quantise import Packing

NAMES = [f"layers.{i}.mlp.experts.{part}" for i in (1, 2) for part in ("gate_up", "down")]


class Weights:
    """Written weights in memory; a router among them, which is no expert."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.parameters = {name: SimpleNamespace(name=name) for name in [*NAMES, "layers.1.mlp.experts.router.weight"]}

    def parameter(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    tensor = parameter


def floats(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, 64, generator=rng).to(dtype) for name in NAMES}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floats_are_those_that_were_written(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = floats(dtype)
    experts = Experts(Weights(tensors), None, tmp_path)  # type: ignore[arg-type]
    for name in NAMES:
        assert experts.parameter(name) is tensors[name]
        assert experts.inputs[name].ctypes.data == tensors[name].data_ptr()
    assert experts.parameter("layers.1.mlp.experts.router.weight") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("packing", [Packing("int4", 32, True), Packing("int8", 64, False), Packing("fp8", 32, False)])
def test_integers_of_all_layers_are_those_of_the_first(packing: Packing, tmp_path: Path) -> None:
    weights = floats(torch.float32)
    stored: dict[str, torch.Tensor] = {}
    for name, values in weights.items():
        packed = packing.quantise(values.numpy())
        parts: dict[str, Any] = {"": packed.values, "_scale": packed.scale, "_zero": packed.zero}
        stored |= {name + part: torch.from_numpy(array) for part, array in parts.items() if array is not None}
    experts = Experts(Weights(stored), packing, tmp_path)  # type: ignore[arg-type]
    for name in NAMES:
        first = name.replace("layers.2", "layers.1")
        expected = torch.from_numpy(packing.round(weights[first].numpy())).to(torch.bfloat16)
        found = experts.parameter(name)
        assert found is not None and torch.equal(found, expected)
        np.testing.assert_array_equal(experts.inputs[name], expected.view(torch.uint16).numpy())
    assert len(list(tmp_path.iterdir())) == 2
