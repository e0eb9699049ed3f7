# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.machines.memory import read_memory

GOOD = "MemTotal: 90 kB\nMemFree: 1 kB\nMemAvailable:  40 kB\nSwapTotal: 9 kB\nSwapFree: 2 kB\nHugePages_Total: 0\n"


def test_bytes_by_name(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(GOOD)
    found = read_memory(tmp_path)
    assert found is not None
    assert (found["MemTotal"], found["MemAvailable"], found["SwapFree"]) == (90 * 1024, 40 * 1024, 2048)
    assert (read_memory() or {})["MemTotal"] > 1 << 20


@pytest.mark.parametrize("text", ["MemTotal: 1 kB\n", GOOD.replace("40", "x"), "MemAvailable:\n", "\n", "\xe4"])
def test_a_file_that_does_not_say_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(text, encoding="latin-1")
    assert read_memory(tmp_path) is None
    assert read_memory(tmp_path / "none") is None
