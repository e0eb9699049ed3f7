# SPDX-License-Identifier: Apache-2.0
"""Native kernels of the operators (C++ and CUDA sources) and where their built libraries lie."""

import os
from pathlib import Path

_LIBRARIES = Path(__file__).parent / "lib"
_NATIVE_ARCHITECTURE = "x86_64"


def native_library_path() -> Path:
    """Where the ONNX Runtime operators are, built or not: plugins/lib/, or $FASTMMOE_ORT_LIBRARY if that is set."""
    override = os.environ.get("FASTMMOE_ORT_LIBRARY")
    return Path(override) if override else _LIBRARIES / "libfastmmoe_ort.so"


def tensorrt_library_path(architecture: str) -> Path:
    """Where the TensorRT plugin for machines of that architecture (x86_64, aarch64) is, built or not.

    plugins/lib/ holds the one for x86-64, folders in it those cross-built for others; $FASTMMOE_TRT_LIBRARY, if that
    is set, takes the place of both.
    """
    override = os.environ.get("FASTMMOE_TRT_LIBRARY")
    folder = _LIBRARIES if architecture == _NATIVE_ARCHITECTURE else _LIBRARIES / architecture
    return Path(override) if override else folder / "libfastmmoe_trt.so"
