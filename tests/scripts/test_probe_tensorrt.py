# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX still answers the questions of scripts/probe_tensorrt.py as the exporter was designed for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_answers_are_as_designed_for() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    command = [sys.executable, str(REPOSITORY / "scripts" / "probe_tensorrt.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [line.split("  ", 1)[0].strip() for line in done.stdout.splitlines()[:-1]]
    assert answers.count("taken") == 9
    assert answers.count("refused") == 4
