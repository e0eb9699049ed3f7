# SPDX-License-Identifier: Apache-2.0
"""Windows over a file of weights: in its order, each tensor to its last byte, and nothing left open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmmoe.runtime.backends import expert_file
from fastmmoe.runtime.backends.expert_file import read_experts, window_size
from fastmmoe.runtime.bundle.storage import ExpertTensor

TENSORS = {
    "late": ExpertTensor(dtype="int8", shape=(1, 2, 5), offset=20),
    "early": ExpertTensor(dtype="float16", shape=(1, 1, 3), offset=2),
}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_parts_come_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_file, "WINDOW", 4)
    (tmp_path / "weights").write_bytes(bytes(range(30)))
    window, files = np.empty(window_size(TENSORS), np.uint8), open_files()
    found = [
        (name, start, part.tolist())
        for name, start, part in read_experts(tmp_path / "weights", TENSORS, lambda: window)
    ]
    assert found == [
        ("early", 0, [2, 3, 4, 5]),
        ("early", 4, [6, 7]),
        ("late", 0, [20, 21, 22, 23]),
        ("late", 4, [24, 25, 26, 27]),
        ("late", 8, [28, 29]),
    ]
    assert open_files() == files


def test_a_window_is_no_greater_than_the_greatest_tensor() -> None:
    assert window_size(TENSORS) == 10


def test_a_reader_that_is_left_closes_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(30))
    files = open_files()
    reading = read_experts(tmp_path / "weights", TENSORS, lambda: np.empty(10, np.uint8))
    next(reading)
    assert open_files() == files + 1
    reading.close()
    assert open_files() == files
