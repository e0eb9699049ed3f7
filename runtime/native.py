# SPDX-License-Identifier: Apache-2.0
"""Loading the native operators (domain `fastmmoe`) into ONNX Runtime."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from fastmmoe import __version__
from fastmmoe.plugins import native_library_path
from fastmmoe.runtime.errors import BundleMismatch

if TYPE_CHECKING:
    import onnxruntime


def register_native_ops(options: onnxruntime.SessionOptions) -> None:
    """Make FmmSparseMoE and FmmTokenPrune known to sessions that are created with these options.

    Raises:
        BundleMismatch: the library is missing, cannot be loaded, or was built from another version.
    """
    path = native_library_path()
    if not path.is_file():
        raise BundleMismatch(f"native library {path} is missing; build it with `make native`")
    version = _library_version(path)
    if version != __version__:
        raise BundleMismatch(
            f"native library {path} is of version {version}, fastmmoe is {__version__}; rebuild it with `make native`"
        )
    options.register_custom_ops_library(str(path))


def _library_version(path: Path) -> str:
    try:
        function = ctypes.CDLL(str(path)).FmmVersion
    except (OSError, AttributeError) as error:
        raise BundleMismatch(f"native library {path} cannot be used: {error}; rebuild it with `make native`") from error
    function.restype = ctypes.c_char_p
    return function().decode()
