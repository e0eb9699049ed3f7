# SPDX-License-Identifier: Apache-2.0
"""Loading the operators (domain `fastmmoe`) into ONNX Runtime: the CPU's, and those of the CUDA provider."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastmmoe import __version__
from fastmmoe.plugins import cuda_library_path, native_library_path, tensorrt_library_command
from fastmmoe.runtime.errors import BundleMismatch

if TYPE_CHECKING:
    import onnxruntime


EXACT_ENTRY = "fastmmoe.exact"
"""Entry of a session's configuration, set before the operators are registered: with "1" they round nothing that they
multiply, as checks want it (plugins/onnxruntime/register.cpp)."""


class _Library(NamedTuple):
    """A library with the operators: what it is called, where it is, what makes it, and what else there is."""

    name: str
    path: Path
    command: str
    instead: str


def register_native_ops(options: onnxruntime.SessionOptions, needed: dict[str, int]) -> None:
    """Make the CPU's operators known to sessions that are created with these options.

    Args:
        needed: version of each operator that the bundle's graphs use.
    Raises:
        BundleMismatch: the library is missing, cannot be loaded, was built from another version, has other operators,
            or refuses ONNX Runtime's version or FASTMMOE_CPU_ISA.
    """
    instead = ", or run with --portable"
    _register(options, needed, _Library("native library", native_library_path(), "make native", instead))


def register_cuda_ops(options: onnxruntime.SessionOptions, needed: dict[str, int]) -> None:
    """The same with the operators for the CUDA provider."""
    _register(options, needed, _Library("CUDA library", cuda_library_path(), tensorrt_library_command(), ""))


def _register(options: onnxruntime.SessionOptions, needed: dict[str, int], library: _Library) -> None:
    name, path, command, instead = library
    if not path.is_file():
        raise BundleMismatch(f"{name} {path} is missing; build it with `{command}`{instead}")
    version = _text(library, "FmmVersion")
    if version != __version__:
        raise BundleMismatch(
            f"{name} {path} is of version {version}, fastmmoe is {__version__}; rebuild it with `{command}`"
        )
    contract = json.loads(_text(library, "FmmContract"))
    for operator, needed_version in needed.items():
        found = contract[operator]["version"] if operator in contract else None
        if found != needed_version:
            raise BundleMismatch(
                f"the bundle uses version {needed_version} of {operator}, {name} {path} has "
                f"{'no such operator' if found is None else f'version {found}'}; export again with fastmmoe {version}"
            )
    try:
        options.register_custom_ops_library(str(path))
    # ONNX Runtime's exceptions have no base of their own.
    except Exception as error:
        said = str(error).rpartition(" : ")[2]
        raise BundleMismatch(f"{name} {path} refuses to be loaded: {said}") from error


def _text(library: _Library, symbol: str) -> str:
    """What a function of the library without arguments says."""
    try:
        function = ctypes.CDLL(str(library.path))[symbol]
    except (OSError, AttributeError) as error:
        raise BundleMismatch(
            f"{library.name} {library.path} cannot be used: {error}; rebuild it with `{library.command}`"
        ) from error
    function.restype = ctypes.c_char_p
    return function().decode()
