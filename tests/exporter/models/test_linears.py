# SPDX-License-Identifier: Apache-2.0
"""Linear layers that are packed: they compute what they did, and keep their parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models.linears import PackedLinear
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.exporter.pruning.settings import PolicyOptions

INT8 = LinearPacking("int8", 128)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
def test_same_as_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(12, 7, bias=bias)
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        packed = PackedLinear(layer)
        torch.testing.assert_close(packed(x), layer(x))
    assert dict(packed.named_parameters()).keys() == dict(layer.named_parameters()).keys()


@pytest.mark.parametrize(
    "packings", [LinearPackings(dense=INT8), LinearPackings(head=INT8), LinearPackings(vision=INT8)]
)
@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_layers_of_a_model(name: str, packings: LinearPackings, checkpoint: Callable[[str], Path]) -> None:
    model = Model(
        Checkpoint(checkpoint(name)), PolicyOptions(), Precision(torch.float32, torch.float32, linears=packings)
    )
    for graph, module in model.graphs.items():
        for path, layer in module.named_modules():
            weight = f"{graph}.{path}.weight"
            if isinstance(layer, (nn.Linear, PackedLinear)):
                assert isinstance(layer, PackedLinear) == (packings.of(weight) is not None)
                assert model.linear_packing(weight) == packings.of(weight)
                assert (model.conversions(weight) == ()) == isinstance(layer, PackedLinear)
            else:
                assert model.linear_packing(weight) is None
