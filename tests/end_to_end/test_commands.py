# SPDX-License-Identifier: Apache-2.0
"""The installed commands as processes: what they import, how fast they say what they do, what they print."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe import __version__
from fastmmoe.runtime.cli.main import main as run_main

SMALL = "dsvl2-small"
COMMANDS = ("fastmmoe", "fastmmoe-export")
HELP_SECONDS = 0.5
HEAVY = {"torch", "transformers", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "safetensors"}
LISTING = """
import sys
from {module} import main
try:
    code = main({arguments!r})
except SystemExit as end:
    code = end.code
print("modules:", code, *sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def program(command: str) -> str:
    return str(Path(sys.executable).with_name(command))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def modules_after(module: str, *arguments: str) -> set[str]:
    """First names of the modules that a command's main has loaded in a fresh process."""
    result = run(sys.executable, "-c", LISTING.format(module=module, arguments=list(arguments)))
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1].split()
    assert last[:2] == ["modules:", "0"], result.stdout
    return set(last[2:])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small PNG file."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(300 * 260 * 3, dtype=np.uint8).reshape(260, 300, 3)).save(path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    result = run(program(command), "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith(f"usage: {command} ")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick(command: str) -> None:
    """On a machine that does little else; test_help_imports_little finds on any what would make it slow."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(program(command), "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of a processor: the wall's says how busy the machine is.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < HELP_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command: str) -> None:
    assert run(program(command), "--version").stdout == f"fastmmoe {__version__}\n"


def test_help_imports_little() -> None:
    for module in ("fastmmoe.exporter.cli", "fastmmoe.runtime.cli.main"):
        assert not modules_after(module, "--help") & (HEAVY | {"numpy", "PIL", "onnxruntime", "tokenizers"}), module


def test_help_names_every_option() -> None:
    text = run(program("fastmmoe-export"), "--help").stdout
    for option in ("--target", "--dtype", "--retention", "--prune-layers", "--expert-factor", "--alpha", "--method"):
        assert option in text
    text = run(program("fastmmoe"), "run", "--help").stdout
    for option in ("--retention", "--pruning-rate", "--visual-top-k", "--max-tiles", "--inputs", "--dump", "--json"):
        assert option in text


def test_run_imports_no_export_dependency(bundle: Callable[..., Path], picture: Path) -> None:
    arguments = ["run", str(bundle(SMALL)), "--image", str(picture), "--prompt", "a", "--max-new-tokens", "2"]
    loaded = modules_after("fastmmoe.runtime.cli.main", *arguments)
    assert {"numpy", "PIL", "onnxruntime", "tokenizers", "msgspec"} <= loaded
    assert not loaded & HEAVY


def test_run_prints_the_answer_and_what_it_cost(bundle: Callable[..., Path], picture: Path) -> None:
    arguments = ["--image", str(picture), "--prompt", "What is it?", "--retention", "0.25", "--max-new-tokens", "4"]
    result = run(program("fastmmoe"), "run", str(bundle(SMALL)), *arguments)
    assert result.returncode == 0
    counts, cost = result.stderr.splitlines()
    assert counts.startswith("fastmmoe: visual tokens 421 -> 210 -> 105, text tokens ")
    assert counts.endswith("retention 0.25, pruning rate 0.75")
    assert "GFLOPs" in cost and "ms/token" in cost
    by_rate = run(
        program("fastmmoe"), "run", str(bundle(SMALL)), *arguments[:4], "--pruning-rate", "0.75", *arguments[6:]
    )
    assert by_rate.stdout == result.stdout
    assert by_rate.stderr.splitlines()[0] == counts


def test_json_is_one_object(
    bundle: Callable[..., Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def output(*arguments: str) -> dict[str, Any]:
        command = ["run", str(bundle(SMALL)), *arguments, "--max-new-tokens", "3", "--json"]
        capsys.readouterr()  # of an export that this may have been the first to ask for
        assert run_main(command) == 0
        captured = capsys.readouterr()
        assert captured.err == "" and captured.out.count("\n") == 1
        value: dict[str, Any] = json.loads(captured.out)
        return value

    answer = output("--image", str(picture), "--prompt", "a", "--retention", "0.5")
    assert len(answer["token_ids"]) == 3 and answer["finish_reason"] == "length"
    assert isinstance(answer["text"], str)
    assert (answer["retention"], answer["pruning_rate"], answer["visual_tokens"]) == (0.5, 0.5, 421)
    assert answer["kept_visual_tokens"] == [297, 210]
    assert answer["cache_lengths"] == [answer["text_tokens"] + v for v in (421, 421, 297)]
    assert answer["ttft_ms"] > 0 and 0 < answer["flops_reduction"] < 1
    np.savez(tmp_path / "in.npz", input_ids=np.array([[3, 4]]))
    shapes = output("--inputs", str(tmp_path / "in.npz"), "--dump", str(tmp_path / "out.npz"))
    assert shapes["logits"] == [1, 320] and shapes["decode_tokens"] == [3]
