# SPDX-License-Identifier: Apache-2.0
"""Upper bounds of a processor's products, from made files; its reading, measured."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from fastmmoe.runtime.machines import speed
from fastmmoe.runtime.machines.speed import Numbers, peak_flops, read_bandwidth


@pytest.mark.parametrize(
    ("cpuinfo", "khz", "expected"),
    [
        ("model name : X\nflags\t\t: fpu avx fma avx512f\ncpu MHz\t\t: 2000.000\n", None, 64 * 3e9),
        ("flags\t\t: fpu avx fma\ncpu MHz\t\t: 1000.0\ncpu MHz\t\t: 2000.0\n", None, 32 * 3e9),
        ("flags\t\t: fpu avx\n", "4500000\n", 16 * 4.5e9),
        ("Features\t: fp asimd evtstrm\n", "2188800\n", 32 * 2.1888e9),
        ("flags\t\t: fpu sse2\n", "?", 8 * 4e9),
        ("", None, 8 * 4e9),
    ],
)
def test_cores_width_and_clock(
    cpuinfo: str, khz: str | None, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "usable_cores", lambda root: 3)
    files = {"proc/cpuinfo": cpuinfo} | (
        {} if khz is None else {"sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": khz}
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert peak_flops(tmp_path) == pytest.approx(3 * expected)


@pytest.mark.parametrize(
    ("flags", "numbers", "per_cycle"),
    [
        ("avx512f avx512_bf16 avx512_vnni", "float32", 64),
        ("avx512f avx512_bf16 avx512_vnni", "bfloat16", 128),
        ("avx512f avx512_bf16 avx512_vnni", "int8", 256),
        ("avx512f amx_int8 avx512_vnni", "int8", 2048),
        ("fma avx2", "float32", 32),
        ("fma avx2", "int8", 128),
        ("fma", "int8", 32),
    ],
)
def test_shorter_numbers_have_instructions_of_their_own(
    flags: str, numbers: Numbers, per_cycle: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "usable_cores", lambda root: 1)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"flags\t: {flags}\ncpu MHz\t: 1000.0\n")
    assert peak_flops(tmp_path, numbers) == pytest.approx(1.5e9 * per_cycle)


def test_no_product_of_numpys_is_faster() -> None:
    a, b = np.ones((512, 1024), np.float32), np.ones((1024, 1024), np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    assert peak_flops() > 2 * 512 * 1024 * 1024 / best


def test_reading_is_measured() -> None:
    assert 1e8 < read_bandwidth(1 << 24) < 1e13
    assert read_bandwidth(0) > 0
