# SPDX-License-Identifier: Apache-2.0
"""What the exporter chooses and refuses by target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.targets import check_kernels, choose_packing
from fastmmoe.runtime.errors import InvalidRequest, UnsupportedModel
from fastmmoe.runtime.machines.targets import TARGETS


def test_cpu_target_refuses_integers() -> None:
    with pytest.raises(InvalidRequest, match=r"^--experts int4: target cpu takes float$"):
        choose_packing(TARGETS["cpu"], ExportConfig(experts="int4"))


def test_zero_points_need_integers() -> None:
    with pytest.raises(InvalidRequest, match=r"^--zero-points: needs --experts int8 or int4$"):
        choose_packing(TARGETS["rtx"], ExportConfig(zero_points=True))


@pytest.mark.parametrize(
    ("experts", "hidden", "inner", "packing", "message"),
    [
        (257, 64, 64, None, r"257 experts: the kernels of target rtx take at most 256"),
        (8, 72, 64, None, r"hidden_size 72: .* take multiples of 16 for float experts"),
        (8, 64, 48, Packing("int4", 32, False), r"expert hidden size 48: .* take multiples of 32 for int4 experts"),
    ],
)
def test_models_that_the_kernels_do_not_take(
    experts: int, hidden: int, inner: int, packing: Packing | None, message: str
) -> None:
    config = SimpleNamespace(hidden_size=hidden, moe=SimpleNamespace(num_experts=experts, intermediate_size=inner))
    with pytest.raises(UnsupportedModel, match=message):
        check_kernels(TARGETS["rtx"], config, packing)
    check_kernels(TARGETS["cpu"], config, packing)
