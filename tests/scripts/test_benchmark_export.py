# SPDX-License-Identifier: Apache-2.0
"""The benchmark of exports: what it measures of a process, with the processes below it, and what it refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.scripts import script

benchmark = script("benchmark_export")
errors = script("benchmark_tools.errors")
MB = 1_000_000

# Writes a file, and holds memory for a while: 60 MB itself, 40 MB in a process of its own.
EXPORT = """
import pathlib, subprocess, sys, time
out = pathlib.Path(sys.argv[1]); out.mkdir(); (out / "weights").write_bytes(bytes(1000))
child = subprocess.Popen([sys.executable, "-c", "import time; x = bytearray(40_000_000); time.sleep(1.5)"])
x = bytearray(60_000_000)
end = time.process_time() + 0.3
while time.process_time() < end: pass
child.wait()
"""


def test_memory_time_and_bytes_of_an_export(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = benchmark.measure([sys.executable, "-c", EXPORT, str(out)], out, tmp_path / "log")
    assert 100 * MB < found.anonymous < 160 * MB
    assert 0.3 <= found.cpu < found.wall and found.wall > 1.5
    assert found.written == 1000


def test_an_export_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('one'); sys.exit('no such checkpoint')"]
    with pytest.raises(errors.BenchmarkError, match=r"ended with 1: .*no such checkpoint$"):
        benchmark.measure(command, tmp_path / "out", tmp_path / "log")


def test_an_export_that_writes_nothing_is_none(tmp_path: Path) -> None:
    with pytest.raises(errors.BenchmarkError, match="has written nothing"):
        benchmark.measure([sys.executable, "-c", ""], tmp_path / "out", tmp_path / "log")


def test_a_directory_that_is_there_stays(tmp_path: Path) -> None:
    with pytest.raises(errors.BenchmarkError, match=f"^{tmp_path} is there; give a new directory"):
        benchmark.measure([sys.executable, "-c", ""], tmp_path, tmp_path / "log")


def test_memory_of_a_process() -> None:
    """That has ended it has none."""
    assert benchmark.anonymous_bytes(os.getpid()) > MB
    assert benchmark.anonymous_bytes(2**22 + 1) == 0


def test_a_row() -> None:
    run = benchmark.Run(27.24, 71.1, 490 * MB, 2_710 * MB)
    assert run.row("ours") == "| ours | 27.2 | 71.1 | 0.49 GB | 2.71 GB |"


def test_options_of_the_export() -> None:
    assert benchmark.split(["run", "a", "b", "--", "--dtype", "bf16"]) == (["run", "a", "b"], ["--dtype", "bf16"])
    assert benchmark.split(["peer", "a"]) == (["peer", "a"], [])
