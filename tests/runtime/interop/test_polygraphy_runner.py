# SPDX-License-Identifier: Apache-2.0
"""The runner's option and script; what it runs: tests/end_to_end/test_polygraphy.py."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("polygraphy", reason="needs polygraphy: pip install -e '.[dev]'")
runner: Any = importlib.import_module("fastmmoe.runtime.interop.polygraphy_runner")


def test_the_option_has_the_projects_name() -> None:
    (group,) = runner.arg_groups()
    assert group.get_name_opt() == ("ONNX Runtime with FastMMoE's operators", "fastmmoe")


def test_the_session_is_made_when_the_runner_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Session:
        def get_inputs(self) -> list[Any]:
            return []

    def session(path: str) -> Session:
        opened.append(path)
        return Session()

    monkeypatch.setattr(runner, "_session", session)
    made = runner.FastmmoeRunner("a.onnx")
    assert made.name == "fastmmoe" and opened == []
    with made:
        assert opened == ["a.onnx"] and not made.get_input_metadata()


def test_the_graph_is_opened_as_it_is() -> None:
    with pytest.raises(Exception, match=r"a\.onnx"), runner.FastmmoeRunner("a.onnx"):
        pass
