# SPDX-License-Identifier: Apache-2.0
"""fastmmoe golden: its arguments, and what it prints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.interop import golden
from fastmmoe.runtime.interop.golden import Golden
from fastmmoe.runtime.request.options import RequestOptions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float | None, int, bool]]:
    """Retention, seed and verify of every call of write_golden, which writes nothing; polygraphy is there."""
    found: list[tuple[float | None, int, bool]] = []

    def write(bundle: Path, out: Path, options: RequestOptions, *, seed: int, verify: bool) -> list[Golden]:
        found.append((options.retention, seed, verify))
        return [
            Golden(
                "vision", out / "vision.inputs.json", out / "vision.outputs.json", 1, 1536 * 1024, ("polygraphy run",)
            )
        ]

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "polygraphy" else find(name))
    monkeypatch.setattr(golden, "write_golden", write)
    return found


def test_what_is_printed(asked: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", "OUT", "DIR", "--retention", "0.5", "--seed", "3", "--no-verify"]) == 0
    assert asked == [(0.5, 3, False)]
    first, command, loader = capsys.readouterr().out.splitlines()
    assert first == "vision: 1 call, 1.6 MB in vision.inputs.json, vision.outputs.json"
    assert command == "  polygraphy run" and "DIR/data_loader.py:vision" in loader


def test_json(asked: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", "OUT", "DIR", "--json"]) == 0
    assert asked == [(None, 0, True)]
    found = json.loads(capsys.readouterr().out)
    assert found["data_loader"] == "DIR/data_loader.py"
    assert found["graphs"] == [
        {
            "graph": "vision",
            "inputs": "DIR/vision.inputs.json",
            "outputs": "DIR/vision.outputs.json",
            "calls": 1,
            "bytes": 1536 * 1024,
            "commands": ["polygraphy run"],
        }
    ]


@pytest.mark.parametrize(("flag", "value"), [("--seed", "-1"), ("--retention", "2")])
def test_numbers_out_of_range(flag: str, value: str, asked: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", "OUT", "DIR", flag, value]) == 2 and asked == []
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag.lstrip('-')} {value}" in line


def test_without_polygraphy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["golden", "OUT", "DIR"]) == 2
    line = "fastmmoe: error: golden needs polygraphy: pip install 'fastmmoe[polygraphy]'"
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_model_repository(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["triton", str(toy_bundle), str(out), "--json", "--name", "robot", "--threads", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"models", "config", "kubernetes", "kserve", "launch"}
    assert 'key: "threads" value { string_value: "2" }' in Path(found["config"]).read_text()
    assert main(["triton", str(toy_bundle), str(out), "--no-verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model repository: {out / 'models'} ({out / 'models' / 'fastmmoe' / 'config.pbtxt'})"
    assert lines[2].startswith("serve it: docker run")


@pytest.mark.parametrize("command", ["golden", "triton"])
@pytest.mark.parametrize("place", [".", "golden"])
def test_a_bundle_takes_no_other_files(
    command: str, place: str, monkeypatch: pytest.MonkeyPatch, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "polygraphy" else find(name))
    before = sorted(toy_bundle.rglob("*"))
    assert main([command, str(toy_bundle), str(toy_bundle / place), "--no-verify"]) == 2
    assert "inside the bundle" in capsys.readouterr().err and sorted(toy_bundle.rglob("*")) == before


def test_a_repository_of_threads_that_there_are_not(toy_bundle: Path, tmp_path: Path) -> None:
    assert main(["triton", str(toy_bundle), str(tmp_path / "out"), "--threads", "-1"]) == 2
    assert not (tmp_path / "out").exists()
