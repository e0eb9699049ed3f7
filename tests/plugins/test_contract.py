# SPDX-License-Identifier: Apache-2.0
"""The built library and the Python side say the same; a library that does not belong is refused."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

import onnxruntime
import pytest

from fastmmoe import __version__
from fastmmoe.exporter.ops import OPS
from fastmmoe.plugins import native_library_path
from fastmmoe.runtime.backends import native
from fastmmoe.runtime.errors import BundleMismatch


def call(name: str) -> str:
    function = getattr(ctypes.CDLL(str(native_library_path())), name)
    function.restype = ctypes.c_char_p
    return function().decode()


def test_contract_is_the_exporters() -> None:
    contract = json.loads(call("FmmContract"))
    assert list(contract) == [spec.name for spec in OPS]
    for spec in OPS:
        assert contract[spec.name] == {
            "version": spec.version,
            "inputs": [t.name for t in spec.inputs],
            "outputs": [t.name for t in spec.outputs],
            "attributes": [a.name for a in spec.attributes],
        }


def test_version_is_the_packages() -> None:
    assert call("FmmVersion") == __version__


def test_library_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTMMOE_ORT_LIBRARY", raising=False)
    assert native_library_path().parts[-3:] == ("plugins", "lib", "libfastmmoe_ort.so")
    monkeypatch.setenv("FASTMMOE_ORT_LIBRARY", str(tmp_path / "other.so"))
    assert native_library_path() == tmp_path / "other.so"


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "missing.so"
    monkeypatch.setenv("FASTMMOE_ORT_LIBRARY", str(missing))
    message = f"native library {missing} is missing; build it with `make native`, or run with --portable"
    with pytest.raises(BundleMismatch, match=f"^{re.escape(message)}$"):
        native.register_native_ops(onnxruntime.SessionOptions(), {})


def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "__version__", "9.8.7")
    message = (
        f"native library {native_library_path()} is of version {__version__}, fastmmoe is 9.8.7; "
        "rebuild it with `make native`"
    )
    with pytest.raises(BundleMismatch, match=f"^{re.escape(message)}$"):
        native.register_native_ops(onnxruntime.SessionOptions(), {})


def test_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("no library")
    monkeypatch.setenv("FASTMMOE_ORT_LIBRARY", str(path))
    with pytest.raises(BundleMismatch, match=rf"^native library {re.escape(str(path))} cannot be used: .*rebuild it"):
        native.register_native_ops(onnxruntime.SessionOptions(), {})


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (
            {"FmmSparseMoE": 2},
            "version 2 of FmmSparseMoE, native library .* has version 1; export again",
        ),
        (
            {"FmmOther": 1},
            "version 1 of FmmOther, native library .* has no such operator; export again",
        ),
    ],
)
def test_bundle_with_other_operators(needed: dict[str, int], message: str) -> None:
    with pytest.raises(BundleMismatch, match=message):
        native.register_native_ops(onnxruntime.SessionOptions(), needed)
