# SPDX-License-Identifier: Apache-2.0
"""Checks what ONNX Runtime's CUDA provider needs before it is started: where that fails, it goes on without a word."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import platform
from pathlib import Path
from typing import Any

from fastmmoe.runtime.backends.distribution import MODULE, check_onnxruntime
from fastmmoe.runtime.backends.provider import CUDA_ARCHITECTURE
from fastmmoe.runtime.errors import BackendMissing
from fastmmoe.runtime.machines.gpu import DRIVER, find_gpu

CUDNN = "libcudnn.so.9"
"""What onnxruntime-gpu 1.23 and later load when a graph has a convolution."""
INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
FAILURE = "Failed to load "
"""How lines of `onnxruntime.preload_dlls` begin."""


def check_cuda_provider(directory: Path) -> None:
    """See that the CUDA provider can start; the CUDA libraries are loaded from where pip installs them.

    Args:
        directory: the bundle, for a message.
    Raises:
        BackendMissing: this machine has none, it is not installed, or driver, GPU or CUDA's libraries are missing.
    """
    machine = platform.machine()
    if machine != CUDA_ARCHITECTURE:
        raise BackendMissing(
            f"provider cuda on {machine}: onnxruntime-gpu has no kernels for a Jetson's GPU, TensorRT is the way: "
            f"fastmmoe build {directory}, then run without a provider"
        )
    check_onnxruntime()
    ort = importlib.import_module(MODULE)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BackendMissing(
            f"onnxruntime {ort.__version__} is the build without CUDA: pip uninstall -y onnxruntime && "
            f"pip install 'fastmmoe[gpu]'"
        )
    _check_driver(ort.cuda_version)
    _check_libraries(ort)


def _check_driver(wanted: str) -> None:
    """wanted: version of CUDA that ONNX Runtime was built for, "13.0"."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise BackendMissing(f"no NVIDIA driver is loaded ({error}): provider cuda runs on an NVIDIA GPU") from error
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    found = f"{number.value // 1000}.{number.value % 1000 // 10}"
    # Within a major version a driver loads what a later minor one was built for.
    if number.value // 1000 < int(wanted.partition(".")[0] or 0):
        raise BackendMissing(
            f"the NVIDIA driver is for CUDA {found}, onnxruntime-gpu needs {wanted}: install a newer driver, or an "
            f"onnxruntime-gpu that was built for CUDA {found.partition('.')[0]}"
        )
    if find_gpu() is None:
        raise BackendMissing(
            "no NVIDIA GPU is visible: provider cuda runs on one (see nvidia-smi and $CUDA_VISIBLE_DEVICES)"
        )


def _check_libraries(ort: Any) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    failures = [line.removeprefix(FAILURE) for line in said.getvalue().splitlines() if line.startswith(FAILURE)]
    try:
        ctypes.CDLL(CUDNN)
    except OSError as error:
        failures.append(f"{CUDNN}: {error}")
    if failures:
        # "NAME: NAME: cannot open shared object file"
        names = ", ".join(dict.fromkeys(Path(line.partition(":")[0]).name for line in failures))
        reason = failures[0].partition(": ")[2]
        raise BackendMissing(
            f"onnxruntime {ort.__version__} needs {names}, of CUDA {ort.cuda_version}, which cannot be loaded "
            f"({reason}): {INSTALL}"
        )
