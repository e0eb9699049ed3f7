# SPDX-License-Identifier: Apache-2.0
"""The command fastmmoe: what reaches the build of engines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.backends.tensorrt import build
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions
from fastmmoe.runtime.cli.main import main


def test_limits_of_a_build_reach_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Any] = []

    def built(directory: Path, options: BuildOptions, *, say: Any, verify: bool) -> Any:
        given.append((directory, options, verify))
        say("building")
        return SimpleNamespace(files={"vision.engine": None, "embedding.engine": None})

    def shown(directory: Path, options: BuildOptions, *, say: Any, verify: bool) -> None:
        given.append((directory, options, verify))
        say("trtexec")

    monkeypatch.setattr(build, "build_engines", built)
    monkeypatch.setattr(build, "show_commands", shown)
    assert main(["build", "out", "--max-tokens", "9", "--max-tiles", "2", "--max-batch", "4", "--workspace", "5"]) == 0
    assert given == [(Path("out"), BuildOptions(max_tokens=9, max_tiles=2, max_batch=4, workspace_mib=5), True)]
    assert capsys.readouterr().out == "building\nwrote vision.engine, embedding.engine in out\n"
    assert main(["build", "out", "--dry-run", "--max-tokens", "9", "--no-verify"]) == 0
    assert given[1:] == [(Path("out"), BuildOptions(max_tokens=9), False)]
    assert capsys.readouterr().out == "trtexec\n"
