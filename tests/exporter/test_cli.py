# SPDX-License-Identifier: Apache-2.0
"""fastmmoe-export and fastmmoe export are one command."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.exporter import cli, export
from fastmmoe.exporter.check.parity import Difference
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.runtime.bundle.manifest import load_manifest
from fastmmoe.runtime.cli.main import build_parser
from fastmmoe.runtime.cli.main import main as fastmmoe
from fastmmoe.runtime.machines.targets import TARGETS
from tests.support.documented import undocumented
from tests.support.manifests import write_toy_bundle

ARGUMENTS: tuple[tuple[str, ...], ...] = (
    ("demo",),
    ("some/model", "out", "--overwrite", "--target", "rtx", "--dtype", "bf16", "--atol", "0.001"),
    ("demo", "--experts", "int4", "--group-size", "64", "--zero-points", "--chat-template", "checkpoint"),
    ("demo", "--kv-cache-dtype", "bf16"),
    (
        "demo",
        "--method",
        "all",
        "--retention",
        "0.3",
        "--prune-layers",
        "1,2",
        "--expert-factor",
        "0.5",
        "--merge",
        "mean",
    ),
)


def options(parser: argparse.ArgumentParser) -> dict[str, tuple[Any, ...]]:
    return {
        " ".join(a.option_strings) or a.dest: (a.dest, a.type, a.choices, a.nargs, a.default, a.help)
        for a in parser._actions
    }


def test_both_take_the_same_options() -> None:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    own = options(cli.build_parser())
    assert own.pop("--version") and own.pop("--print-completion")
    assert options(commands.choices["export"]) == own


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_both_export_the_same(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[tuple[ExportConfig, str]] = []

    def exported(config: ExportConfig, command: str, *_: object, **__: object) -> int:
        exports.append((config, command))
        return 0

    monkeypatch.setattr(cli, "run", exported)
    assert cli.main(arguments) == 0
    assert fastmmoe(["export", *arguments]) == 0
    assert exports[0][0] == exports[1][0]
    assert [command for _, command in exports] == ["fastmmoe-export", "fastmmoe"]


def test_a_forgotten_model_exports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (cli.main, lambda argv: fastmmoe(["export", *argv])):
        with pytest.raises(SystemExit) as end:
            call(["--target", "jetson-orin"])
        assert end.value.code == 2
        assert "the following arguments are required: MODEL" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_first_line_comes_before_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is loaded')\n", "utf-8")
    command = [str(Path(sys.executable).with_name("fastmmoe-export")), "demo", "out"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "exporting demo for cpu to out: loading torch ...\n"
    assert done.stderr == "torch is loaded\n"


def test_an_export_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_toy_bundle(tmp_path / "out")

    def run_export(plan: Any, say: Any) -> export.Exported:
        say("tracing")
        return export.Exported(load_manifest(out), [Difference("vision", 2e-6, 1e-4)])

    plan = SimpleNamespace(name="toy", out=out, target=TARGETS["cpu"])
    monkeypatch.setattr("fastmmoe.exporter.plan.plan_export", lambda *_: plan)
    monkeypatch.setattr(export, "run_export", run_export)
    assert cli.main(["demo", str(out), "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert output.err.splitlines()[1:] == ["tracing", found["next_step"]]
    assert found["bundle"] == str(out) and found["methods"][0] == "none"
    assert found["differences"] == [{"what": "vision", "value": 2e-6, "tolerance": 1e-4, "against": "torch"}]
    assert found["files"] == len(list(out.iterdir())) and found["bytes"] > 0 and found["seconds"] > 0
    assert undocumented("export", found) == []
    assert cli.main(["demo", str(out), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_errors_begin_with_the_command_that_was_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    for call, name in ((cli.main, "fastmmoe-export"), (lambda argv: fastmmoe(["export", *argv]), "fastmmoe")):
        assert call(["demo", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith(f"{name}: error: {tmp_path / 'out'} exists")


def test_threads_of_torch_sleep_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cli.main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    cli.main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_the_installed_command_knows_it() -> None:
    script = Path(sys.executable).with_name("fastmmoe")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "make a bundle of a checkpoint" in shown
