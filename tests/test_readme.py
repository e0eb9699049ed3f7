# SPDX-License-Identifier: Apache-2.0
"""The README's commands and the Python of the pages it names first, run as written."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def blocks(language: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document, flags=re.S | re.M)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line]


def test_make_targets_exist() -> None:
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the picture that make demo draws."""
    directory = tmp_path_factory.mktemp("readme")
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.write_scene(directory / demo.SCENE)
    return directory


def test_commands_and_python(workplace: Path) -> None:
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("fastmmoe")]
    assert [command[0] for command in commands] == ["fastmmoe-export", *["fastmmoe"] * 4]
    assert [command[1] for command in commands[1:]] == ["run", "run", "flops", "plan-retention"]
    for name, *arguments in commands:
        script = Path(sys.executable).with_name(name)
        result = subprocess.run([script, *arguments], cwd=workplace, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()
    (code,), (conversation,) = blocks("python"), blocks("python", METHODS)
    result = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "221 -> (139, 87, 55)" in result.stdout
    result = subprocess.run(
        [sys.executable, "-c", conversation], cwd=workplace, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 2
