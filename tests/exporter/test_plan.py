# SPDX-License-Identifier: Apache-2.0
"""What an export refuses before torch is imported, and how soon."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmmoe.exporter.cli import read_arguments
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.plan import plan_export
from fastmmoe.runtime.cli import command
from fastmmoe.runtime.errors import InvalidRequest

PROGRAM = """
import sys
from fastmmoe.exporter.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(code, *(name for name in ("torch", "onnx", "onnx_ir", "onnxscript") if name in sys.modules))
"""

REFUSALS = {
    "retention": (["--retention", "1.5"], "retention 1.5: expected a number in (0, 1]"),
    "alpha": (["--alpha", "1.5"], "--alpha 1.5: expected 0 to 1"),
    "merge ratio": (["--merge-ratio", "nan"], "--merge-ratio nan: expected 0 to 1"),
    "window": (["--window", "0"], "--window 0: expected 1 to 64"),
    "expert factor": (["--expert-factor", "0"], "--expert-factor 0.0: expected a number in (0, 1]"),
    "no layers": (["--prune-layers", ","], "--prune-layers is empty"),
    "layers": (["--prune-layers", "2,1"], "--prune-layers 2,1: expected ascending layers"),
    "method none": (["--method", "none", "--retention", "1.7"], "retention 1.7: expected a number in (0, 1]"),
    "layers of none": (["--method", "none", "--prune-layers", "1"], "--method none prunes nothing"),
    "tolerance": (["--atol", "0"], "--atol 0.0: expected a positive number"),
    "type": (["--target", "rtx", "--dtype", "fp32"], "--dtype fp32: target rtx takes"),
    "memory": (["--target", "jetson-orin", "--memory", "16GB"], "target jetson-agx-orin takes 32GB, 64GB"),
    "memory of nothing": (["--memory", "16GB"], "--memory 16GB: target cpu is for machines of any memory; leave it"),
    "layout": (
        ["--layout", "tiles"],
        "--layout tiles: target cpu takes them with bf16, int8, int4 experts, these are fp32",
    ),
    "groups": (["--group-size", "64"], "--group-size 64: needs --experts int8, int4 or fp8, or --dense int4"),
    "zeros": (["--zero-points"], "--zero-points: needs --experts int8 or int4"),
    "policy": (["--policy", "nowhere.json"], "nowhere.json"),
}


def run(cwd: Path, *arguments: str) -> tuple[str, str]:
    """Last line of stdout (exit code, heavy modules that were loaded) and stderr of a process."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )
    return result.stdout.splitlines()[-1], result.stderr


@pytest.mark.parametrize("kind", ["retention", "layout", "out", "parent", "model", "config"])
def test_no_torch_before_a_refusal(kind: str, own_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    flags, words = REFUSALS.get(kind, ([], ""))
    model, out = "demo", "out"
    if kind == "out":
        (tmp_path / "out").write_text("mine")
        words = "exists and is not a bundle"
    elif kind == "parent":
        out, words = "a/b/c", "a is not a directory: make it first"
    elif kind == "model":
        model, words = "nowhere", "nowhere: no such directory"
    elif kind == "config":
        model, words = "dsvl2-mha", "config.json"
        (own_checkpoint("dsvl2-mha") / "config.json").write_text("{")
    code, line = run(tmp_path, model, out, *flags)
    assert code == "2"
    assert line.startswith("fastmmoe-export: error: ") and line.count("\n") == 1 and words in line, line


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_of_a_plan(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags, words = REFUSALS[kind]
    with pytest.raises(InvalidRequest) as refusal:
        plan_export(read_arguments(["demo", "out", *flags]))
    assert words in str(refusal.value)
    assert not list(tmp_path.iterdir())


NO_UTF8 = "o\udcff"


@pytest.mark.parametrize("arguments", [("demo", NO_UTF8), (NO_UTF8, "out"), (NO_UTF8,), ("demo", f"{NO_UTF8}/out")])
def test_names_that_are_not_utf8(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NO_UTF8).mkdir()
    with pytest.raises(InvalidRequest, match="is not UTF-8: rename it"):
        plan_export(read_arguments(arguments))


def test_a_working_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work").rmdir()
    for arguments in (("demo",), ("demo", "out"), ("model", str(tmp_path / "out"))):
        with pytest.raises(InvalidRequest, match="the folder you work in was removed"):
            plan_export(read_arguments(arguments))
    assert plan_export(read_arguments(("demo", str(tmp_path / "out")))).out == tmp_path / "out"


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert plan_export(read_arguments(("demo", str(tmp_path / "out")))).name == "demo"


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_export(ExportConfig())
    assert (plan.name, plan.out, plan.dtype, plan.packing) == ("demo", Path("demo-cpu"), "fp32", None)
    assert plan.cache_dtype == "float32"
    assert not list(tmp_path.iterdir())


def test_caches_are_stored_as_they_are_asked_for(tmp_path: Path) -> None:
    """By default as activations are, whatever the experts."""
    for dtype in ("fp16", "bf16"):
        plan = plan_export(ExportConfig(out=tmp_path / "out", dtype=dtype))
        assert (plan.dtype, plan.cache_dtype) == (dtype, "float32")
    config = ExportConfig(out=tmp_path / "out", dtype="fp16", kv_cache_dtype="bf16")
    assert plan_export(config).cache_dtype == "bfloat16"


def test_a_base_installation_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastmmoe.exporter.cli import main

    find = command.importlib.util.find_spec
    missing = ("torch", "onnx_ir")
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    assert main(["demo", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "fastmmoe-export: error: the export needs torch, onnx_ir: pip install 'fastmmoe[export]'\n"
    )


def test_printed_commands_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastmmoe.exporter import export
    from fastmmoe.exporter.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "run_export", lambda plan, report: plan.out)
    assert main(["demo", "my bundle"]) == 0
    assert "\nrun it: fastmmoe run 'my bundle' --image" in capsys.readouterr().out
