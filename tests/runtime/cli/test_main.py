# SPDX-License-Identifier: Apache-2.0
"""The command fastmmoe: what reaches the build of engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.backends.tensorrt import build
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions
from fastmmoe.runtime.bundle.manifest import FORMAT, Engines, FileEntry, Limits
from fastmmoe.runtime.cli.main import main
from tests.support.documented import undocumented

ENGINES = Engines(
    format=FORMAT,
    fastmmoe_version="0",
    plugin_version="0",
    bundle_sha256="0" * 64,
    module="tensorrt",
    tensorrt_version="10",
    device=None,
    compute_capabilities=(87,),
    limits=Limits(max_tokens=1, max_visual=1, max_cache=1, max_tiles=1, max_batch=1),
    files={name: FileEntry(bytes=1, sha256="0" * 64) for name in ("vision.engine", "embedding.engine")},
    seconds={"vision.engine": 1.0},
)


def test_limits_of_a_build_reach_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Any] = []

    def built(directory: Path, options: BuildOptions, *, say: Any, verify: bool) -> Any:
        given.append((directory, options, verify))
        say("building")
        return ENGINES

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
    assert main(["build", "out", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lines": ["trtexec"]}
    assert main(["build", "out", "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert output.err.startswith("building\n") and found == json.loads(msgspec.json.encode(ENGINES))
    assert undocumented("build", found) == []
    assert main(["build", "out", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
