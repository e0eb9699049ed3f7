# SPDX-License-Identifier: Apache-2.0
"""The native library is registered where it is of this version and has the operators of a bundle, and only there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from fastmmoe import __version__
from fastmmoe.exporter.ops import ENGINE_OPS, OPS
from fastmmoe.plugins import cuda_library_path, native_library_path
from fastmmoe.runtime.backends import native
from fastmmoe.runtime.backends.native import register_cuda_ops, register_native_ops
from fastmmoe.runtime.errors import BundleMismatch

NEEDED = {"FmmSparseMoE": 1, "FmmTokenPrune": 2}


@pytest.fixture
def registered() -> list[str]:
    """Libraries that session options were given."""
    return []


@pytest.fixture
def options(registered: list[str]) -> Any:
    """Session options that only record them."""
    return SimpleNamespace(register_custom_ops_library=registered.append)


def library(path: Path, monkeypatch: pytest.MonkeyPatch, versions: dict[str, int], version: str = __version__) -> Path:
    """A file that says this of itself, in the library's place."""
    path.touch()
    said = {"FmmVersion": version, "FmmContract": json.dumps({name: {"version": n} for name, n in versions.items()})}
    monkeypatch.setattr(native, "native_library_path", lambda: path)
    monkeypatch.setattr(native, "_text", lambda _, symbol: said[symbol])
    return path


def test_a_library_that_fits(
    options: Any, registered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library(tmp_path / "a.so", monkeypatch, {**NEEDED, "FmmMore": 1})
    register_native_ops(options, NEEDED)
    assert registered == [str(path)]


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({}, f"is of version 0.0.1, fastmmoe is {__version__}; rebuild it with `make native`"),
        ({"FmmTokenPrune": 1}, "the bundle uses version 2 of FmmTokenPrune, native library {path} has version 1; "),
        ({"FmmTokenPrune": 3}, f"has version 3; export again with fastmmoe {__version__}"),
        ({"FmmTokenPrune": None}, "native library {path} has no such operator; export again"),
    ],
)
def test_a_library_that_does_not_fit(
    says: dict[str, Any],
    words: str,
    options: Any,
    registered: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {name: value for name, value in (NEEDED | says).items() if value is not None}
    path = library(tmp_path / "a.so", monkeypatch, said, __version__ if says else "0.0.1")
    with pytest.raises(BundleMismatch, match=re.escape(words.format(path=path))):
        register_native_ops(options, NEEDED)
    assert registered == []


def test_what_is_no_library(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.so"
    monkeypatch.setattr(native, "native_library_path", lambda: path)
    with pytest.raises(BundleMismatch, match=r"a\.so is missing; build it with `make native`, or run with --portable"):
        register_native_ops(options, {})
    path.write_bytes(b"no library")
    with pytest.raises(BundleMismatch, match=r"a\.so cannot be used: .*; rebuild it with `make native`"):
        register_native_ops(options, {})


def test_the_library_that_was_built() -> None:
    """It has the operators of the contracts, and ONNX Runtime takes it."""
    path = native_library_path()
    if not path.is_file():
        pytest.skip(f"needs {path} (make native)")
    built = native._Library("native library", path, "make native", "")
    assert native._text(built, "FmmVersion") == __version__
    contract = json.loads(native._text(built, "FmmContract"))
    versions = {spec.name: spec.version for spec in OPS}
    assert {name: one["version"] for name, one in contract.items()} == versions
    register_native_ops(ort.SessionOptions(), versions)
    with pytest.raises(BundleMismatch, match=r"cannot be used: .*undefined symbol: FmmNothing"):
        native._text(built, "FmmNothing")


def test_an_instruction_set_that_is_none() -> None:
    """It is refused when the library is loaded, before there is a session; in a process that has not asked before."""
    path = native_library_path()
    if not path.is_file():
        pytest.skip(f"needs {path} (make native)")
    code = "import onnxruntime as ort; from fastmmoe.runtime.backends.native import register_native_ops as register; "
    code += "register(ort.SessionOptions(), {})"
    environment = os.environ | {"FASTMMOE_CPU_ISA": "avx3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    said = f"native library {path} refuses to be loaded: FASTMMOE_CPU_ISA is 'avx3', expected baseline"
    assert f"BundleMismatch: {said}" in done.stderr.splitlines()[-1]


def test_the_operators_for_cuda(options: Any, registered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that was built is looked at without a GPU; one that is missing names what brings it."""
    path = cuda_library_path()
    if not path.is_file():
        pytest.skip(f"needs {path} (make plugins)")
    register_cuda_ops(options, {spec.name: spec.version for spec in ENGINE_OPS})
    assert registered == [str(path)]
    monkeypatch.setenv("FASTMMOE_ORT_CUDA_LIBRARY", "/nowhere/a.so")
    with pytest.raises(BundleMismatch, match=r"^CUDA library /nowhere/a\.so is missing; build it with `make plugins`$"):
        register_cuda_ops(options, {})
