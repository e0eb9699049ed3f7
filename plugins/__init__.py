# SPDX-License-Identifier: Apache-2.0
"""Native kernels of the operators (C++ and CUDA sources) and where their built libraries lie."""

import os
from pathlib import Path


def native_library_path() -> Path:
    """Where the ONNX Runtime operators are, built or not: plugins/lib/, or $FASTMMOE_ORT_LIBRARY if that is set."""
    override = os.environ.get("FASTMMOE_ORT_LIBRARY")
    return Path(override) if override else Path(__file__).parent / "lib" / "libfastmmoe_ort.so"
