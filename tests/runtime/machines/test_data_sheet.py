# SPDX-License-Identifier: Apache-2.0
"""Names that drivers and firmware give GPUs, beside the entries of data sheets that they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.machines.data_sheet import find_device, read_board
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.gpu import Gpu
from tests.support.machine_trees import machine, memory


@pytest.mark.parametrize(
    ("name", "sm", "expected"),
    [
        ("NVIDIA H200", 90, "h200-sxm"),
        ("NVIDIA H100 80GB HBM3", 90, "h100-sxm"),
        ("NVIDIA A100-SXM4-40GB", 80, "a100-sxm-40gb"),
        ("NVIDIA A100-SXM4-80GB", 80, "a100-sxm-80gb"),
        ("NVIDIA L4", 89, "l4"),
        ("NVIDIA L40S", 89, "l40s"),
        ("NVIDIA B200", 100, "b200"),
        ("NVIDIA GeForce RTX 4090", 89, "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", 120, "rtx-5090"),
        # Others, faster or slower.
        ("NVIDIA H100 NVL", 90, None),
        ("NVIDIA GeForce RTX 3090 Ti", 86, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 89, None),
        ("NVIDIA GeForce RTX 4080", 89, None),
        ("NVIDIA H200", 80, None),
    ],
)
def test_cards(name: str, sm: int, expected: str | None, tmp_path: Path) -> None:
    assert find_device(Gpu(name, sm), tmp_path) is (None if expected is None else DEVICES[expected])


def test_a_name_without_memory_is_taken_for_the_fastest(tmp_path: Path) -> None:
    assert find_device(Gpu("NVIDIA A100", 80), tmp_path) is DEVICES["a100-sxm-80gb"]


@pytest.mark.parametrize(
    ("board", "sm", "total_gb", "expected"),
    [
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 87, 16.0, "orin-nx-16gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super", 87, 7.8, "orin-nx-8gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 87, 7.8, "orin-nano-8gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 87, 65.9, "agx-orin-64gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 87, 32.1, "agx-orin-32gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 110, 131.9, "thor-t5000"),
    ],
)
def test_boards(board: str, sm: int, total_gb: float, expected: str, tmp_path: Path) -> None:
    machine(tmp_path, {"proc/device-tree/model": f"{board}\0", "proc/meminfo": memory(total_gb, 1.0, 0.0)})
    assert read_board(tmp_path) == board
    assert find_device(Gpu("Orin" if sm == 87 else "NVIDIA Thor", sm), tmp_path) is DEVICES[expected]


def test_a_board_that_is_no_text(tmp_path: Path) -> None:
    assert read_board(tmp_path) == ""
    (tmp_path / "proc" / "device-tree" / "model").mkdir(parents=True)
    assert read_board(tmp_path) == ""
    machine(tmp_path, {"sys/firmware/devicetree/base/model": "A  board\n\0"})
    assert read_board(tmp_path) == "A board"
