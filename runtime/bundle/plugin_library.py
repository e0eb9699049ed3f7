# SPDX-License-Identifier: Apache-2.0
"""Version and architecture of a TensorRT plugin library, read from the file: it may be for another machine."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from fastmmoe import __version__
from fastmmoe.plugins import tensorrt_library_command, tensorrt_library_path
from fastmmoe.runtime.bundle.manifest import PLUGIN, Manifest, PluginInfo
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.machines.targets import Target, TensorRT

# The library holds this text, its version and a zero byte.
VERSION_MARKER = b"FASTMMOE_TRT_VERSION="
LONGEST_VERSION = 64
# e_machine of the ELF header -> what platform.machine() says.
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}


def find_plugin(target: Target, tensorrt: TensorRT) -> tuple[Path, PluginInfo]:
    """The target's plugin library as installed beside this package.

    Raises:
        InvalidRequest: there is none.
        BundleMismatch: it is none, of another version or for other machines.
    """
    path = tensorrt_library_path(tensorrt.plugin)
    if not path.is_file():
        raise InvalidRequest(
            f"target {target.name}: there is no TensorRT plugin {path}; "
            f"`{tensorrt_library_command(tensorrt.plugin)}` brings it"
        )
    plugin = read_plugin(path)
    if plugin.version != __version__:
        raise BundleMismatch(
            f"TensorRT plugin {path} is of version {plugin.version}, fastmmoe is {__version__}; "
            f"{_replacement(tensorrt.plugin)}"
        )
    if plugin.architecture != tensorrt.architecture:
        raise BundleMismatch(
            f"TensorRT plugin {path} is for {plugin.architecture}, target {target.name} needs {tensorrt.architecture}; "
            f"{_replacement(tensorrt.plugin)}"
        )
    return path, plugin


def _replacement(build: str = "x86_64") -> str:
    return f"`{tensorrt_library_command(build)}` brings one that fits"


def check_bundled_plugin(directory: Path, manifest: Manifest) -> PluginInfo:
    """The plugin of a bundle whose manifest has been read.

    Raises:
        BundleMismatch: there is none, or of another version than this package.
    """
    if manifest.plugin is None or PLUGIN not in manifest.files:
        raise BundleMismatch(f"{directory}: {manifest.target} bundle without {PLUGIN}; export again")
    version = manifest.plugin.version
    if version != __version__:
        raise BundleMismatch(
            f"{directory / PLUGIN}: of version {version}, this is fastmmoe {__version__}; export again with fastmmoe "
            f"{__version__}, or install fastmmoe {version} here"
        )
    return manifest.plugin


def read_plugin(path: Path) -> PluginInfo:
    """Version and architecture of a library file, which is not loaded.

    Raises:
        BundleMismatch: it is no plugin library of fastmmoe.
    """
    # Mapping needs at least one byte; an ELF header has 64.
    if path.stat().st_size < 64:
        raise BundleMismatch(f"{path}: not a shared library; {_replacement()}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        machine = struct.unpack_from("<H", data, 18)[0]
        if data[:4] != b"\x7fELF" or machine not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES.values())
            raise BundleMismatch(f"{path}: not a shared library for one of {known}; {_replacement()}")
        start = data.find(VERSION_MARKER)
        text = data[start : start + len(VERSION_MARKER) + LONGEST_VERSION] if start >= 0 else b""
        version, end, _ = text.removeprefix(VERSION_MARKER).partition(b"\0")
        if not (version and end and version.isascii()):
            raise BundleMismatch(f"{path}: names no version: not a TensorRT plugin of fastmmoe; {_replacement()}")
        return PluginInfo(version=version.decode(), architecture=ARCHITECTURES[machine])
