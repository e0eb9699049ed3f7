# SPDX-License-Identifier: Apache-2.0
"""Tests again with the kernels of another processor."""

from __future__ import annotations

import os
import subprocess
import sys


def run_tests(isa: str, *tests: str) -> None:
    """Run tests, as pytest names them, in a process with the kernels of this instruction set; fail where one does."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "FASTMMOE_CPU_ISA": isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
