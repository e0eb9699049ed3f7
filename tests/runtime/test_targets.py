# SPDX-License-Identifier: Apache-2.0
"""The table of targets holds together with devices, element types and the exporter's words."""

from __future__ import annotations

import pytest

from fastmmoe.exporter.targets import DTYPES, NEXT_STEP, activation_dtype, choose_dtype
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_devices_have_a_compute_capability_of_the_target(name: str) -> None:
    target = TARGETS[name]
    capabilities = target.tensorrt.compute_capabilities if target.tensorrt is not None else ()
    assert {DEVICES[device].sm for device in target.devices} <= set(capabilities)
    assert bool(target.devices) == bool(capabilities)


def test_jetson_orin_is_every_orin_of_the_table() -> None:
    assert set(TARGETS["jetson-orin"].devices) == {name for name, device in DEVICES.items() if device.sm == 87}


def test_the_exporter_knows_every_target_and_dtype() -> None:
    assert NEXT_STEP.keys() == TARGETS.keys()
    assert {dtype for target in TARGETS.values() for dtype in target.dtypes} == DTYPES.keys()


def test_dtypes() -> None:
    assert [choose_dtype(TARGETS[name], None) for name in ("cpu", "jetson-orin", "rtx")] == ["fp32", "fp16", "fp16"]
    assert choose_dtype(TARGETS["rtx"], "bf16") == "bf16"
    with pytest.raises(InvalidRequest, match=r"--dtype fp32: target rtx takes fp16, bf16"):
        choose_dtype(TARGETS["rtx"], "fp32")
    assert activation_dtype(TARGETS["cpu"], "bf16") == "float32"
    assert activation_dtype(TARGETS["jetson-orin"], "bf16") == "bfloat16"
