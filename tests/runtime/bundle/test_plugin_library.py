# SPDX-License-Identifier: Apache-2.0
"""What is read from TensorRT plugin libraries without loading them, and what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmmoe import __version__, plugins
from fastmmoe.plugins import tensorrt_library_path
from fastmmoe.runtime.bundle.manifest import PluginInfo
from fastmmoe.runtime.bundle.plugin_library import find_plugin, read_plugin
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.machines.targets import JETPACK_6, JETPACK_7, TARGETS

JETSON = TARGETS["jetson-agx-orin"]


def test_paths_by_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMMOE_TRT_LIBRARY", raising=False)
    assert tensorrt_library_path("x86_64").parts[-3:] == ("plugins", "lib", "libfastmmoe_trt.so")
    for build in ("aarch64", "jetpack6"):
        assert tensorrt_library_path(build).parts[-4:] == ("plugins", "lib", build, "libfastmmoe_trt.so")


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_what_is_not_built_comes_from_the_other_distribution(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTMMOE_TRT_LIBRARY", raising=False)
    monkeypatch.setattr(plugins, "_LIBRARIES", tmp_path / "lib")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "libfastmmoe_trt.so" if architecture == "x86_64" else f"{architecture}/libfastmmoe_trt.so"
    assert tensorrt_library_path(architecture) == tmp_path / "lib" / name
    package = tmp_path / "fastmmoe_plugins"
    package.mkdir()
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    assert tensorrt_library_path(architecture) == package / "lib" / name
    own = tmp_path / "lib" / name
    own.parent.mkdir(parents=True)
    own.touch()
    assert tensorrt_library_path(architecture) == own


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_version_and_architecture(architecture: str, fake_plugin: Callable[..., Path]) -> None:
    path = fake_plugin(version="12.3.4rc1", architecture=architecture)
    assert read_plugin(path) == PluginInfo(version="12.3.4rc1", architecture=architecture)


def test_found(fake_plugin: Callable[..., Path]) -> None:
    path = fake_plugin()
    assert find_plugin(JETSON, JETPACK_7) == (path, PluginInfo(version=__version__, architecture="aarch64"))


def test_jetpack_6_has_a_plugin_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMMOE_TRT_LIBRARY", raising=False)
    monkeypatch.setattr(plugins, "_LIBRARIES", tmp_path)
    words = rf"@jp6\.2: there is no TensorRT plugin {tmp_path}/jetpack6/libfastmmoe_trt\.so; `make jetpack6` brings it$"
    with pytest.raises(InvalidRequest, match=words):
        find_plugin(TARGETS["jetson-orin-nx@jp6.2"], JETPACK_6)


def test_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMMOE_TRT_LIBRARY", str(tmp_path / "none.so"))
    words = r"target jetson-agx-orin: there is no TensorRT plugin .*none\.so; `make plugins` brings it$"
    with pytest.raises(InvalidRequest, match=words):
        find_plugin(JETSON, JETPACK_7)


def test_a_wheel_which_cannot_build_names_the_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_SOURCES", tmp_path / "CMakeLists.txt")
    line = f"`pip install fastmmoe-plugins=={__version__}` brings"
    monkeypatch.setenv("FASTMMOE_TRT_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(InvalidRequest, match=f"{line} it$"):
        find_plugin(JETSON, JETPACK_7)
    monkeypatch.setenv("FASTMMOE_TRT_LIBRARY", __file__)
    with pytest.raises(BundleMismatch, match=f"{line} one that fits$"):
        find_plugin(JETSON, JETPACK_7)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"version": "0.0.9"}, f"is of version 0.0.9, fastmmoe is {__version__}; `make plugins` brings one that fits"),
        ({"architecture": "x86_64"}, "is for x86_64, target jetson-agx-orin needs aarch64; `make plugins` brings"),
    ],
)
def test_does_not_fit(says: dict[str, str], words: str, fake_plugin: Callable[..., Path]) -> None:
    fake_plugin(**says)
    with pytest.raises(BundleMismatch, match=words):
        find_plugin(JETSON, JETPACK_7)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: b"", "not a shared library; `make plugins` brings"),
        (lambda data: data[:63], "not a shared library; `make plugins` brings"),
        (lambda data: b"\0" + data[1:], "not a shared library for one of x86_64, aarch64"),
        (lambda data: data[:18] + b"\x28" + data[19:], "not a shared library for one of x86_64, aarch64"),  # 32-bit Arm
        (lambda data: data[:64] + bytes(64), "names no version"),
        (lambda data: data[:-1], "names no version"),
        (lambda data: data.replace(__version__.encode(), b"9" * 80), "names no version"),
        (lambda data: data.replace(__version__.encode(), b""), "names no version"),
    ],
)
def test_not_a_plugin(edit: Callable[[bytes], bytes], words: str, fake_plugin: Callable[..., Path]) -> None:
    path = fake_plugin()
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(BundleMismatch, match=words):
        read_plugin(path)
