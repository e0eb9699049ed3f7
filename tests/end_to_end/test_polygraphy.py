# SPDX-License-Identifier: Apache-2.0
"""Golden files of exported bundles, as Polygraphy's own command compares them with the graphs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.cli.main import main
from tests.end_to_end.conftest import SMALL
from tests.support.golden import CHECKPOINTS, REPOSITORY

pytest.importorskip("polygraphy", reason="needs polygraphy: pip install -e '.[dev]'")

PROGRAM = "import sys; from polygraphy.tools import main; sys.exit(main())"
GROUP = "polygraphy.run.plugins"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose metadata have the entry point of pyproject.toml, whatever was installed before it was there."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'\[project\.entry-points\."{GROUP}"\]\nfastmmoe = "(.+)"', text)
    assert found is not None
    metadata = tmp_path_factory.mktemp("plugin") / "fastmmoe_plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fastmmoe-plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nfastmmoe = {found[1]}\n")
    return metadata.parent


@pytest.fixture
def polygraphy(plugin: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function (words) -> a run of Polygraphy's command."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(plugin), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", PROGRAM, *words]
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def golden_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Function (bundle, *flags) -> what `fastmmoe golden --json` says of its files in tmp_path."""

    def write(directory: Path, *flags: str) -> dict[str, Any]:
        capfd.readouterr()
        assert main(["golden", str(directory), str(tmp_path), "--json", *flags]) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    return write


def passed(done: subprocess.CompletedProcess[str]) -> str:
    """How many iterations passed, all outputs of the golden file having been compared."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"Passed: (\d+/\d+) iterations", done.stdout)
    return str(found[-1])


@pytest.mark.parametrize("name", [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in CHECKPOINTS)])
def test_graphs_pass_their_golden_files(
    name: str, bundle: Callable[..., Path], golden_files: Callable[..., Any], polygraphy: Callable[..., Any]
) -> None:
    found = {one["graph"]: one for one in golden_files(bundle(name), "--retention", "0.25")["graphs"]}
    assert {graph: one["calls"] for graph, one in found.items()} == {"vision": 1, "embedding": 2, "language_model": 2}
    ours, stock = found["language_model"]["commands"]
    assert "language_model.onnx --fastmmoe" in ours and "language_model.portable.onnx --onnxrt" in stock
    for one in found.values():
        for command in one["commands"]:
            program, *words = shlex.split(command)
            assert program == "polygraphy"
            assert passed(polygraphy(*words)) == f"{one['calls']}/{one['calls']}"


def test_another_model_does_not_pass(
    bundle: Callable[..., Path], golden_files: Callable[..., Any], polygraphy: Callable[..., Any], tmp_path: Path
) -> None:
    """A logit that is off by 1e-3 is found, so that passing means something."""
    (_, _, found) = golden_files(bundle(SMALL))["graphs"]
    words = shlex.split(found["commands"][0])[1:]
    code = (
        "import sys; from polygraphy.comparator import RunResults\n"
        "results = RunResults.load(sys.argv[1]); call = results[0][1][0]\n"
        "logits = call['logits'].copy(); logits[0, 0] += 1e-3; call['logits'] = logits\n"
        "results.save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, found["outputs"]], check=True, capture_output=True)
    done = polygraphy(*words)
    assert done.returncode == 1 and "FAILED | Output: 'logits'" in done.stdout


def test_the_data_loader_makes_inputs_that_both_graphs_take(
    bundle: Callable[..., Path], golden_files: Callable[..., Any], polygraphy: Callable[..., Any]
) -> None:
    directory = bundle(SMALL)
    loader = golden_files(directory)["data_loader"]
    for graph, runners, calls in (
        ("language_model.portable", ("--onnxrt", "--fastmmoe"), "4/4"),
        ("vision", ("--onnxrt", "--fastmmoe"), "1/1"),
    ):
        function = graph.partition(".")[0]
        words = (str(directory / f"{graph}.onnx"), *runners, "--data-loader-script", f"{loader}:{function}")
        assert passed(polygraphy("run", *words, "--atol", "1e-5")) == calls


def test_two_runs_write_the_same_bytes(
    bundle: Callable[..., Path], golden_files: Callable[..., Any], tmp_path: Path
) -> None:
    def contents() -> dict[str, bytes]:
        golden_files(bundle(SMALL))
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first = contents()
    assert len(first) == 7 and contents() == first
