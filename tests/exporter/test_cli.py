# SPDX-License-Identifier: Apache-2.0
"""fastmmoe-export and fastmmoe export are one command."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter import cli
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.runtime.cli.main import build_parser
from fastmmoe.runtime.cli.main import main as fastmmoe

ARGUMENTS: tuple[tuple[str, ...], ...] = (
    (),
    ("some/model", "out", "--overwrite", "--target", "rtx", "--dtype", "bf16", "--atol", "0.001"),
    ("--experts", "int4", "--group-size", "64", "--zero-points", "--chat-template", "checkpoint"),
    ("--kv-cache-dtype", "bf16"),
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

    def export(config: ExportConfig, command: str) -> int:
        exports.append((config, command))
        return 0

    monkeypatch.setattr(cli, "run", export)
    assert cli.main(arguments) == 0
    assert fastmmoe(["export", *arguments]) == 0
    assert exports[0][0] == exports[1][0]
    assert [command for _, command in exports] == ["fastmmoe-export", "fastmmoe"]


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
