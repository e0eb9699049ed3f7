# SPDX-License-Identifier: Apache-2.0
"""Builds the programs of plugins/testing that run kernels in a process of their own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
PROGRAMS = PLUGINS / "testing"
QEMU = "qemu-aarch64-static"


def settings_for_aarch64() -> list[str]:
    """Of CMake. Skips where the compiler or QEMU, which runs the program, is missing."""
    for tool, package in {"aarch64-linux-gnu-g++-12": "g++-12-aarch64-linux-gnu", QEMU: "qemu-user-static"}.items():
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: install {package}")
    return [f"-DCMAKE_TOOLCHAIN_FILE={PLUGINS / 'cmake' / 'aarch64.cmake'}"]


def build_program(name: str, build: Path, settings: list[str]) -> Path:
    """The program, made in the folder `build`; settings: of CMake."""
    for command in (
        ["cmake", "-S", str(PROGRAMS / name), "-B", str(build), *settings],
        ["cmake", "--build", str(build), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return build / name
