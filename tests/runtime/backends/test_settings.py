# SPDX-License-Identifier: Apache-2.0
"""Settings as ONNX Runtime is given them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from fastmmoe.runtime.backends import onnxruntime
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import DEFAULTS, Settings
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.machines.threads import usable_cores
from tests.support.manifests import toy_manifest

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Operators that the native library was asked for."""
    found: list[dict[str, int]] = []
    monkeypatch.setattr(onnxruntime, "register_native_ops", lambda _, needed: found.append(needed))
    return found


def options_of(graph: str, settings: Settings) -> ort.SessionOptions:
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend.manifest, backend._settings = toy_manifest("deepseek_vl2"), settings
    return backend._session_options(graph)


def test_defaults(registered: list[dict[str, int]]) -> None:
    options = options_of("language_model", DEFAULTS)
    assert options.intra_op_num_threads == usable_cores()
    assert options.get_session_config_entry(SPINNING) == "0"
    assert not options.enable_profiling
    assert registered == [{"FmmAttention": 1, "FmmSparseMoE": 1, "FmmTokenPrune": 1}]


def test_threads_and_spinning(registered: list[dict[str, int]]) -> None:
    options = options_of("vision", Settings(threads=2, spinning=True))
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry(SPINNING) == "1"
    with pytest.raises(InvalidRequest, match="threads -1: expected 0 or more"):
        options_of("vision", Settings(threads=-1))


def test_only_the_language_model_has_operators_of_our_own(registered: list[dict[str, int]]) -> None:
    for graph in ("vision", "embedding"):
        options_of(graph, DEFAULTS)
    assert registered == []
    options_of("language_model", DEFAULTS)
    assert len(registered) == 1


def test_portable_does_without_the_native_library(registered: list[dict[str, int]], tmp_path: Path) -> None:
    options_of("language_model", Settings(portable=True))
    assert registered == []
    manifest = toy_manifest("deepseek_vl2", target="rtx", portable=False, files=without_portable())
    with pytest.raises(BundleMismatch, match="the bundle has no portable variant"):
        OnnxRuntime(tmp_path, manifest, Settings(portable=True))


def without_portable() -> dict[str, dict[str, object]]:
    files = toy_manifest("deepseek_vl2").files
    return {
        name: {"bytes": entry.bytes, "sha256": entry.sha256}
        for name, entry in files.items()
        if name != "language_model.portable.onnx"
    }
