# SPDX-License-Identifier: Apache-2.0
"""The command of optimum-cli, on a stand-in for Optimum; with the released one: tests/test_optimum.py."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastmmoe.exporter.config import ExportConfig

MODULE = "fastmmoe.exporter.optimum_command"


@dataclass
class CommandInfo:
    """As Optimum's."""

    name: str
    help: str


class BaseCommand:
    """As Optimum's: it is made with the arguments that its own parser read."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[ExportConfig, str]]]:
    """Function (words, code=0) -> configurations of the exports that these words ask for, each of which ends so."""
    base: Any = ModuleType("optimum.commands.base")
    base.BaseOptimumCLICommand, base.CommandInfo = BaseCommand, CommandInfo
    for name in ("optimum", "optimum.commands"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module: Any = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "checkpoint_of", lambda name, revision: Path(f"/hub/{name}@{revision}"))

    def call(*words: str, code: int = 0) -> list[tuple[ExportConfig, str]]:
        found: list[tuple[ExportConfig, str]] = []

        def run(config: ExportConfig, name: str) -> int:
            found.append((config, name))
            return code

        monkeypatch.setattr(module, "run", run)
        parser = argparse.ArgumentParser("optimum-cli")
        module.ExportFastmmoe.parse_args(parser)
        module.ExportFastmmoe(parser.parse_args(list(words))).run()
        return found

    return call


def test_flags_of_both_programs(command: Callable[..., Any]) -> None:
    words = ("--model", "demo", "out", "--task", "image-text-to-text", "--atol", "1e-3", "--dtype", "fp16")
    ((config, name),) = command(*words, "--target", "jetson-orin", "--experts", "int4", "--retention", "0.25")
    assert name == "optimum-cli"
    assert (config.model, config.out, config.atol, config.dtype) == ("demo", Path("out"), 1e-3, "fp16")
    assert (config.target, config.experts, config.policy.retention) == ("jetson-orin", "int4", 0.25)


def test_defaults_are_those_of_the_export(command: Callable[..., Any]) -> None:
    ((config, _),) = command("-m", "demo", "out")
    assert config == ExportConfig(out=Path("out"))


def test_a_name_is_looked_up(command: Callable[..., Any]) -> None:
    ((config, _),) = command("-m", "us/model", "out", "--revision", "v2")
    assert config.model == "/hub/us/model@v2"


def test_the_exit_code_is_the_exports(command: Callable[..., Any]) -> None:
    with pytest.raises(SystemExit) as end:
        command("-m", "demo", "out", code=1)
    assert end.value.code == 1


def test_another_task(command: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command("-m", "demo", "out", "--task", "text-generation")
    assert end.value.code == 2
    expected = "auto, image-text-to-text, image-text-to-text-with-past"
    assert capsys.readouterr().err == f"optimum-cli: error: --task text-generation: expected one of {expected}\n"
