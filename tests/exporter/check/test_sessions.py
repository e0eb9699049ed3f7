# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's sessions for the check: nothing of the weights is copied, and experts are bound where they lie."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.check.sessions import MappedOnnxRuntime
from fastmmoe.runtime.backends import onnxruntime


class Options:
    """Keeps what is set."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.graph_optimization_level: Any = Level.ORT_ENABLE_ALL

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class Level(str):
    ORT_DISABLE_ALL: Any
    ORT_ENABLE_ALL: Any


Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_ALL = Level("none"), Level("all")


@pytest.fixture(autouse=True)
def _no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Any, directory: Path, manifest: Any, settings: Any, graphs: tuple[str, ...]) -> None:
        self.settings, self.graphs = settings, graphs

    monkeypatch.setattr(onnxruntime.OnnxRuntime, "__init__", init)
    monkeypatch.setattr(onnxruntime.OnnxRuntime, "_session_options", lambda *_: Options())


def runtime(inputs: dict[str, Any], **options: Any) -> Any:
    manifest: Any = SimpleNamespace(experts=SimpleNamespace(inputs=inputs))
    return MappedOnnxRuntime(Path(), manifest, "language_model", **options)


@pytest.mark.parametrize(("inputs", "level"), [({}, "all"), ({"experts": None}, "none")])
def test_weights_are_neither_packed_nor_cast_beforehand(inputs: dict[str, Any], level: str) -> None:
    backend = runtime(inputs)
    options = backend._session_options("language_model")
    assert options.entries == {"session.disable_prepacking": "1"}
    assert options.graph_optimization_level == level
    assert (backend.graphs, backend.settings.portable) == (("language_model",), False)


def test_experts_are_bound_where_they_lie() -> None:
    values = np.zeros((2, 3), np.uint16)
    constants = runtime({"experts": None}, experts={"experts": values})._constants
    assert constants["experts"].data_ptr() == values.ctypes.data
    assert constants["experts"].data_type() == "tensor(bfloat16)"
