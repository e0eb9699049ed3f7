# SPDX-License-Identifier: Apache-2.0
"""Loading the native operators (domain `fastmmoe`) into ONNX Runtime."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fastmmoe import __version__
from fastmmoe.plugins import native_library_path
from fastmmoe.runtime.errors import BundleMismatch

if TYPE_CHECKING:
    import onnxruntime


def register_native_ops(options: onnxruntime.SessionOptions, needed: dict[str, int]) -> None:
    """Make FmmSparseMoE and FmmTokenPrune known to sessions that are created with these options.

    Args:
        needed: version of each operator that the bundle's graphs use.
    Raises:
        BundleMismatch: the library is missing, cannot be loaded, was built from another version, or has other
            operators.
    """
    path = native_library_path()
    if not path.is_file():
        raise BundleMismatch(f"native library {path} is missing; build it with `make native`, or run with --portable")
    version = _text(path, "FmmVersion")
    if version != __version__:
        raise BundleMismatch(
            f"native library {path} is of version {version}, fastmmoe is {__version__}; rebuild it with `make native`"
        )
    contract = json.loads(_text(path, "FmmContract"))
    for name, needed_version in needed.items():
        found = contract[name]["version"] if name in contract else None
        if found != needed_version:
            raise BundleMismatch(
                f"the bundle uses version {needed_version} of {name}, native library {path} has "
                f"{'no such operator' if found is None else f'version {found}'}; export again with fastmmoe {version}"
            )
    options.register_custom_ops_library(str(path))


def _text(path: Path, symbol: str) -> str:
    """What a function of the library without arguments says."""
    try:
        function = ctypes.CDLL(str(path))[symbol]
    except (OSError, AttributeError) as error:
        raise BundleMismatch(f"native library {path} cannot be used: {error}; rebuild it with `make native`") from error
    function.restype = ctypes.c_char_p
    return function().decode()
