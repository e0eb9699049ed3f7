# SPDX-License-Identifier: Apache-2.0
"""Builds the programs of plugins/testing that run kernels in a process of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[2] / "plugins" / "testing"


def build_program(name: str, build: Path, settings: list[str]) -> Path:
    """The program, made in the folder `build`; settings: of CMake."""
    for command in (
        ["cmake", "-S", str(PROGRAMS / name), "-B", str(build), *settings],
        ["cmake", "--build", str(build), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return build / name
