# SPDX-License-Identifier: Apache-2.0
"""What runs a bundle: the best that the bundle and this machine have, or what the user asks for."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import NamedTuple

from fastmmoe.plugins import cuda_library_path
from fastmmoe.runtime.backends.distribution import has_gpu_distribution
from fastmmoe.runtime.backends.settings import AUTO, CPU, CUDA, TENSORRT
from fastmmoe.runtime.bundle.manifest import ENGINES
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.gpu import find_gpu
from fastmmoe.runtime.machines.targets import Target, TensorRT

CUDA_ARCHITECTURE = "x86_64"
"""Of the machines whose onnxruntime-gpu has CUDA kernels for their GPUs: PyPI's aarch64 wheel has none for SM 87."""


class Found(NamedTuple):
    """What bundle and machine have. tensorrt: its engines and what loads them. cuda: all for the CUDA provider."""

    gpu: bool
    tensorrt: bool
    cuda: bool


def choose_provider(asked: str, directory: Path, target: Target) -> str:
    """CPU, CUDA or TENSORRT, for a bundle of this target.

    Args:
        asked: one of these, which is taken if the bundle can do it, or AUTO. Where nothing can run engines, AUTO is
            TENSORRT, whose loading says what is missing.
    Raises:
        InvalidRequest: the bundle is not for what is asked.
    """
    if target.tensorrt is None:
        if asked in (AUTO, CPU):
            return CPU
        raise InvalidRequest(
            f"{directory}: provider {asked} on a bundle of target {target.name}, which ONNX Runtime runs on the CPU: "
            "leave the provider out, or export with --target rtx"
        )
    if asked == CPU:
        raise InvalidRequest(
            f"{directory}: provider cpu on a bundle of target {target.name}, whose 16-bit graphs are for a GPU: export "
            f"with --target cpu"
        )
    return best_for_engines(find(directory, target.tensorrt)) if asked == AUTO else asked


def best_for_engines(found: Found) -> str:
    """TENSORRT before CUDA: it decodes by captured graphs, and its kernels are chosen for the GPU."""
    return CUDA if found.gpu and found.cuda and not found.tensorrt else TENSORRT


def find(directory: Path, tensorrt: TensorRT) -> Found:
    """Look for it; nothing is loaded but the driver."""
    is_installed = _is_there(tensorrt.module) and _is_there("cuda")
    has_cuda = platform.machine() == CUDA_ARCHITECTURE and has_gpu_distribution() and cuda_library_path().is_file()
    return Found(find_gpu() is not None, is_installed and (directory / ENGINES).is_file(), has_cuda)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
