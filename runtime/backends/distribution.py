# SPDX-License-Identifier: Apache-2.0
"""The installed ONNX Runtime. Two distributions bring the same module, so none of them is a base dependency."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from fastmmoe.runtime.errors import BackendMissing
from fastmmoe.runtime.machines.gpu import find_gpu

MODULE = "onnxruntime"
GPU_DISTRIBUTION = "onnxruntime-gpu"
DISTRIBUTIONS = ("onnxruntime", GPU_DISTRIBUTION)
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Environment variable: without it ONNX Runtime 1.32 keeps a device id and events in the user's cache folder."""


def check_onnxruntime() -> None:
    """See that ONNX Runtime can be imported, without importing it; its telemetry is off unless the user set it.

    Raises:
        BackendMissing: it is not installed, was installed twice, or has lost files to the removal of the other one.
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    found = {name: number for name in DISTRIBUTIONS if (number := _version(name)) is not None}
    if len(found) > 1:
        both = " and ".join(f"{name} {number}" for name, number in found.items())
        raise BackendMissing(
            f"{both} are installed over each other: keep one of them, for example pip uninstall -y "
            f"{' '.join(found)} && pip install 'fastmmoe[gpu]'"
        )
    module = importlib.util.find_spec(MODULE)
    if module is None:
        raise BackendMissing(f"ONNX Runtime is not installed for {sys.executable}: {_install_line()}")
    # A folder without __init__.py.
    if module.origin is None:
        name = next(iter(found), MODULE)
        raise BackendMissing(
            f"{name} has lost files to another package: pip install --force-reinstall --no-deps {name}"
        )


def has_gpu_distribution() -> bool:
    """Whether the ONNX Runtime that is installed is the one with CUDA."""
    return _version(GPU_DISTRIBUTION) is not None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _install_line() -> str:
    """What installs the ONNX Runtime of this machine; the GPU's has no wheel for aarch64."""
    line = "pip install 'fastmmoe[cpu]'"
    has_choice = platform.machine() == "x86_64" and find_gpu() is not None
    return f"{line}, or 'fastmmoe[gpu]' for bundles that run on the GPU" if has_choice else line
