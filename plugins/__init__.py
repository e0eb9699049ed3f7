# SPDX-License-Identifier: Apache-2.0
"""Native kernels of the operators (C++ and CUDA sources) and where their built libraries lie."""

import importlib.util
import os
from pathlib import Path

from fastmmoe import __version__

_SOURCES = Path(__file__).parent / "CMakeLists.txt"
_LIBRARIES = Path(__file__).parent / "lib"
_NATIVE_BUILD = "x86_64"
_MAKE = {"jetpack6": "make jetpack6"}
"""Builds that `make plugins` leaves out."""
_DISTRIBUTION = "fastmmoe_plugins"
"""The package of the distribution fastmmoe-plugins, which has the libraries for GPUs alone."""


def native_library_path() -> Path:
    """Where the ONNX Runtime operators are, built or not: plugins/lib/, or $FASTMMOE_ORT_LIBRARY if that is set."""
    override = os.environ.get("FASTMMOE_ORT_LIBRARY")
    return Path(override) if override else _LIBRARIES / "libfastmmoe_ort.so"


def tensorrt_library_path(build: str) -> Path:
    """Where a build of the TensorRT plugin is, made or not: "x86_64", "aarch64" (JetPack 7) or "jetpack6".

    plugins/lib/ holds the one for x86-64, folders in it those cross-built for others. What is not built there is taken
    from the distribution fastmmoe-plugins. $FASTMMOE_TRT_LIBRARY, if that is set, takes the place of all.
    """
    folder = "" if build == _NATIVE_BUILD else build
    return _built_or_installed("FASTMMOE_TRT_LIBRARY", Path(folder) / "libfastmmoe_trt.so")


def cuda_library_path() -> Path:
    """Where the operators for ONNX Runtime's CUDA provider are, built or not; $FASTMMOE_ORT_CUDA_LIBRARY if set."""
    return _built_or_installed("FASTMMOE_ORT_CUDA_LIBRARY", Path("libfastmmoe_ort_cuda.so"))


def _built_or_installed(variable: str, name: Path) -> Path:
    override = os.environ.get(variable)
    if override:
        return Path(override)
    installed = importlib.util.find_spec(_DISTRIBUTION)
    if not (_LIBRARIES / name).is_file() and installed is not None and installed.origin is not None:
        return Path(installed.origin).parent / "lib" / name
    return _LIBRARIES / name


def tensorrt_library_command(build: str = _NATIVE_BUILD) -> str:
    """The command that brings a build of the libraries for GPUs: a checkout makes it, a wheel has no sources."""
    if not _SOURCES.is_file():
        return f"pip install fastmmoe-plugins=={__version__}"
    return _MAKE.get(build, "make plugins")
