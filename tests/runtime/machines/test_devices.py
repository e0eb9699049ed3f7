# SPDX-License-Identifier: Apache-2.0
"""The table of devices: the rules that fill gaps of data sheets, and what a device cannot be."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import TARGETS

ORIN = [name for name, device in DEVICES.items() if device.sm == 87]
# Of a multiprocessor, in KiB, by compute capability: CUDA C++ Programming Guide, technical specifications.
SHARED_KB = {80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 100: 228, 110: 228, 120: 100}
GEFORCE = [name for name in DEVICES if name.startswith("rtx-")]


@pytest.mark.parametrize("name", ORIN)
def test_rates_of_orin_follow_from_the_clock(name: str) -> None:
    """1024 multiply-adds of two operations in each multiprocessor; NVIDIA states 17 TFLOPS for Orin Nano."""
    device = DEVICES[name]
    expected = device.multiprocessors * 1024 * 2 * device.clock_ghz / 1000
    assert device.fp16_tflops == pytest.approx(expected, rel=0.02)
    assert device.int8_tops == pytest.approx(2 * expected, rel=0.02)


@pytest.mark.parametrize("name", DEVICES)
def test_shared_memory_is_that_of_the_compute_capability(name: str) -> None:
    assert DEVICES[name].shared_kb_per_sm == SHARED_KB[DEVICES[name].sm]


@pytest.mark.parametrize("name", DEVICES)
def test_int8_and_fp8_are_twice_as_fast_where_they_are_stated(name: str) -> None:
    device = DEVICES[name]
    # GeForce: four times, as float16 is summed in float32 at half the rate.
    int8 = (4 if name in GEFORCE else 2) * device.fp16_tflops
    assert device.int8_tops is None or device.int8_tops == pytest.approx(int8, rel=0.06)
    assert (device.fp8_tflops is None) == (device.sm in (80, 86, 87))
    assert device.fp8_tflops is None or device.fp8_tflops == pytest.approx(2 * device.fp16_tflops, rel=0.06)


def test_jetsons_say_their_power_mode() -> None:
    assert {name for name, device in DEVICES.items() if device.power_mode} == {*ORIN, "thor-t5000"}


def test_every_device_has_a_name_of_its_own_and_targets_name_known_ones() -> None:
    assert len({device.name for device in DEVICES.values()}) == len(DEVICES)
    assert {name for target in TARGETS.values() for name in target.devices} <= DEVICES.keys()
