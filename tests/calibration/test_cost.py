# SPDX-License-Identifier: Apache-2.0
"""Counted FLOPs of many prompts are those that the runtime counts for each."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from fastmmoe.calibration.cost import Cost
from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.cost.flops import compare_prefill

SIZES = [(60, 40), (60, 40), (30, 20)]


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-gptoss"])
def test_cost_of_a_mixed_set(golden_model: Callable[[str], TorchModel], name: str) -> None:
    model = golden_model(name)
    cost, policy = Cost(model.info, SIZES), model.resolve(PolicyOptions(retention=0.3))
    each = [compare_prefill(model.info, policy, tokens=T, visual_tokens=V) for T, V in SIZES]
    assert cost.flops(policy) == sum(e.prefill.total for e in each) / 3
    assert cost.reduction(policy) == 1 - sum(e.prefill.total for e in each) / sum(e.unmodified.total for e in each)
    retention = cost.retention_for(policy, 0.25)
    assert retention is not None
    for R, reaches in ((retention, True), (round(retention + 0.0001, 4), False)):
        assert (cost.reduction(msgspec.structs.replace(policy, retention=R)) >= 0.25) is reaches
    assert cost.retention_for(policy, 0.99) is None
