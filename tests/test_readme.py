# SPDX-License-Identifier: Apache-2.0
"""The commands and the Python of README and tutorial, run as written."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


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


def run(directory: Path, name: str, *arguments: str) -> str:
    """Output of a command of this Python environment, which must succeed."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def run_python(directory: Path, code: str) -> str:
    return run(directory, Path(sys.executable).name, "-c", code)


def test_commands_and_python(workplace: Path) -> None:
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("fastmmoe")]
    assert [command[0] for command in commands] == ["fastmmoe-export", *["fastmmoe"] * 4]
    assert [command[1] for command in commands[1:]] == ["run", "run", "flops", "plan-retention"]
    for command in commands:
        assert run(workplace, *command)
    (code,), (conversation,) = blocks("python"), blocks("python", METHODS)
    assert "221 -> (139, 87, 55)" in run_python(workplace, code)
    assert len(run_python(workplace, conversation).splitlines()) >= 2


def keep_layers(checkpoint: Path, count: int) -> None:
    """Leave the first decoder layers of a DeepSeek-VL2 checkpoint: fewer are traced in less time."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["language_config"]["num_hidden_layers"] = count
    (checkpoint / "config.json").write_text(json.dumps(config))
    tensors = load_file(checkpoint / "model.safetensors")
    layers = {name: re.match(r"language\.model\.layers\.(\d+)\.", name) for name in tensors}
    kept = {name: tensors[name] for name, layer in layers.items() if layer is None or int(layer[1]) < count}
    save_file(kept, checkpoint / "model.safetensors", metadata={"format": "pt"})


def test_tutorial(own_checkpoint: Callable[[str], Path], golden: Path) -> None:
    """On a random model, whose answers mean nothing."""
    checkpoint = own_checkpoint("dsvl2-mha")
    keep_layers(checkpoint, 4)
    workplace = checkpoint.parent
    checkpoint.rename(workplace / "my-model")
    shutil.copyfile(golden / "dsvl2-inputs" / "img2_300x260.png", workplace / "my-picture.png")
    commands = [line for block in blocks("sh", TUTORIAL) for line in block.splitlines()]
    assert [command.split()[1] for command in commands[1:]] == ["inspect", "run", "flops", "plan-retention", "run"]
    for command in commands:
        run(workplace, *shlex.split(command))
    (code,) = blocks("python", TUTORIAL)
    assert "tokens were there already" in run_python(workplace, code)
