# SPDX-License-Identifier: Apache-2.0
"""The double's classes, methods and enumerations against those of the real packages: no difference."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.support import signatures
from tests.support.double import Double, installed
from tests.support.signatures import PROPERTY
from tests.support.stub_libraries import write_stubs

BUILD = Path(__file__).resolve().parents[2] / ".build"
# TensorRT calls these with bytes; its binding's own signature is that of the C++ class.
OF_CXX = {("IStreamWriter", "write"), ("IStreamReaderV2", "read")}
# What the double has for tests, or Python's.
NOT_REAL = {"PybindEnum", "Dims"}
# Version of the double -> that of bindings on the index, and their package. 10.16.2.10 comes with JetPack alone.
BINDINGS = {
    "10.3.0": ("10.3.0", "tensorrt-cu12-bindings"),
    "10.16.2.10": ("10.16.1.11", "tensorrt-cu13-bindings"),
    "11.4.0.106": ("11.4.0.106", "tensorrt-cu13-bindings"),
}


def members(module: Any) -> dict[tuple[str, str], Any]:
    """Class and name -> what the double has: parameters of a method, PROPERTY, the number of a member."""
    found: dict[tuple[str, str], Any] = {}
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__name__ in NOT_REAL or cls.__module__.startswith("enum"):
            continue
        if issubclass(cls, Enum):
            found |= {(cls.__name__, member.name): int(member.value) for member in cls}
            continue
        public = [name for name in dir(cls) if not name.startswith("_") and name not in dir(bytearray)]
        for name in public:
            value = inspect.getattr_static(cls, name)
            if inspect.isfunction(value):
                found[cls.__name__, name] = list(inspect.signature(value).parameters)
            elif isinstance(value, property):
                found[cls.__name__, name] = PROPERTY
    return {key: value for key, value in found.items() if key not in OF_CXX}


def differences(mine: dict[tuple[str, str], Any], theirs: list[Any]) -> dict[tuple[str, str], Any]:
    """What is not so in the real package: (the double's, the real)."""
    wrong = {}
    for (key, value), real in zip(mine.items(), theirs, strict=True):
        agrees = value in real if isinstance(value, list) and isinstance(real, list) else value == real
        if not agrees:
            wrong[key] = (value, real)
    return wrong


def test_tensorrt_rtx() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt_rtx: pip install 'fastmmoe[rtx]'")
    real = importlib.import_module("tensorrt_rtx")
    with installed() as double:
        module = double.modules("tensorrt_rtx").trt
        mine = members(module)
        assert module is not real and module.__version__ == real.__version__
    assert len(mine) > 80
    assert differences(mine, [signatures.of_binding(real, *key) for key in mine]) == {}


def test_cuda_bindings() -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("needs cuda-bindings: pip install cuda-bindings==13.0.3")
    real = importlib.import_module("cuda.bindings.runtime")
    with installed() as double:
        mine = vars(double.modules().cudart)
    for name, value in mine.items():
        if name.startswith("cuda"):
            theirs = getattr(real, name)
            if inspect.isclass(value) and issubclass(value, Enum):
                assert {m.name: m.value for m in value} == {m.name: int(theirs[m.name]) for m in value}, name
            elif inspect.isfunction(value):
                assert list(inspect.signature(value).parameters) == list(inspect.signature(theirs).parameters), name
            elif isinstance(value, int):
                assert value == theirs, name
    assert sum(inspect.isfunction(value) and name.startswith("cuda") for name, value in mine.items()) > 30


@pytest.mark.slow
@pytest.mark.parametrize("version", BINDINGS)
def test_tensorrt(double: Double, version: str) -> None:
    folder = bindings(version)
    mine = members(double.modules("tensorrt", tensorrt=version).trt)
    library = next(folder.glob("tensorrt*_bindings/tensorrt*.so"))
    write_stubs(library, folder / "stubs")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    asked = subprocess.run(
        [sys.executable, signatures.__file__, library.parent.name],
        input=json.dumps(list(mine)),
        env=os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(folder / "stubs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert len(mine) > 80
    assert differences(mine, json.loads(asked.stdout)) == {}


def bindings(version: str) -> Path:
    """The unpacked wheel of a version's bindings, downloaded once."""
    for tool in ("gcc", "readelf", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    real, name = BINDINGS[version]
    folder = BUILD / "bindings" / real
    if folder.is_dir():
        return folder
    wheels, package = folder.with_name(f"{real}-wheel"), f"{name}=={real}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"needs {package} from the package index: {result.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder
