# SPDX-License-Identifier: Apache-2.0
"""The acceptance on a GPU: both runs rehearsed without one, its report, its time budgets, and what its parts find."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops.quantise import pack_int4
from tests.support.scripts import SCRIPTS, script

plan = script("gpu_acceptance_tools.plan")
report = script("gpu_acceptance_tools.report")
runner = script("gpu_acceptance_tools.runner")
kernels = script("gpu_acceptance_tools.kernels")
work = script("gpu_acceptance_tools.work")
layer = script("gpu_acceptance_tools.layer")
peers = script("gpu_acceptance_tools.peers")
pack = script("gpu_acceptance_tools.pack")
fat = script("gpu_acceptance_tools.fat_binaries")
CPU = torch.device("cpu")


# What each section measures of its own; sections without a name here only check.
MEASURED = {
    "times": {"copy", "product", "FmmSparseMoE", "FmmAttention", "FmmTokenPrune"},
    "profile": {"Duration"},
    "device_loop": {"captured step of copies"},
    "peers": {"torch._grouped_mm", "triton", "onnxruntime", "torch attention"},
    "whole_model": {"demo", "large decode step"},
}
# The others make bundles, or run the kernels again under stand-ins.
SHORT = ("environment", "build", "correctness", "times", "device_loop", "peers")


def rehearse(out: Path, run: int, *names: str) -> None:
    """Rehearse the sections, else those of the run: each checks something and passes; nothing is left out."""
    command = [sys.executable, str(SCRIPTS / "gpu_acceptance.py"), "--rehearse", "--run", str(run), "--out", str(out)]
    only = ["--only", *names] if names else []
    done = subprocess.run([*command, *only], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = report.read_report(out / "acceptance.json")
    assert (found.run, found.is_rehearsal) == (run, True)
    planned = [section.name for section in plan.of_run(run)]
    assert [section.name for section in found.sections] == (list(names) or planned)
    for section in found.sections:
        assert section.status == "passed", section.error
        assert section.checks
        assert 0 < section.seconds <= section.budget_s
        assert not [fact for fact in section.facts if "not run" in fact]
        assert MEASURED.get(section.name, set()) <= {m.name for m in section.measurements}


def test_rehearsal_of_the_short_sections(tmp_path: Path) -> None:
    rehearse(tmp_path, 1, *SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("run", [1, 2])
def test_rehearsal(tmp_path: Path, run: int) -> None:
    """Every planned section."""
    rehearse(tmp_path, run)


SECTIONS = """
import sys, time, os
sys.path[:0] = {path!r}
from pathlib import Path
from gpu_acceptance_tools.report import Recorder
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name = arguments["--section"]
recorder = Recorder(Path(arguments["--scratch"]) / f"{{name}}.json", name, float(arguments["--budget"]))
recorder.check("began", True, 1, 1)
if name == "hangs":
    time.sleep(60)
if name == "dies":
    print("last words")
    sys.stdout.flush()
    os.kill(os.getpid(), 11)
recorder.check("ended", name != "fails", 2, 3)
recorder.end()
"""


@pytest.fixture
def run_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function (names, limit of the run) -> exit code and report of sections that do as they are called."""
    file = tmp_path / "sections.py"
    file.write_text(SECTIONS.format(path=[str(SCRIPTS), str(SCRIPTS.parent)]), encoding="utf-8")
    monkeypatch.setattr(runner, "SCRIPT", file)

    def run(*names: str, limit_s: float = 60) -> Any:
        budgets = {"hangs": 1.5}
        sections = [plan.Planned(name, (1,), budgets.get(name, 20), 0) for name in names]
        given = work.Work(False, tmp_path / "scratch", tmp_path / "out")
        code = runner.run_all(1, given, sections=sections, limit_s=limit_s, say=lambda line: None)
        return code, report.read_report(tmp_path / "out" / "acceptance.json")

    return run


def test_what_ends_one_section_leaves_the_next_alone(run_named: Any) -> None:
    code, found = run_named("hangs", "dies", "fails", "passes")
    assert code == 1
    assert [section.status for section in found.sections] == ["timeout", "error", "failed", "passed"]
    assert [len(section.checks) for section in found.sections] == [1, 1, 2, 2]
    assert found.sections[0].error == "its 2 s were used up; what it had found is here"
    assert found.sections[0].seconds < 10
    assert found.sections[1].error == "its process ended with -11: last words"
    assert found.sections[2].error == "ended: found 2, expected 3"


def test_a_run_ends_in_time(run_named: Any) -> None:
    code, found = run_named("hangs", "passes", limit_s=1.0)
    assert code == 1
    assert [(s.status, s.budget_s) for s in found.sections][1] == ("timeout", 0.0)
    assert found.sections[1].error == "not started: the run's time was used up"


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """Exit code 1, and what is missing: nothing passes that was not looked at."""
    command = [sys.executable, str(SCRIPTS / "gpu_acceptance.py"), "--run", "2", "--only", "environment", "device_loop"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, env=hidden)
    found = report.read_report(tmp_path / "acceptance.json")
    assert done.returncode == 1
    assert [section.status for section in found.sections] == ["failed", "unavailable"]
    assert found.sections[0].error == "a GPU: found 0, expected at least 1"


def test_a_report_of_another_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    whole = {"schema": 1, "run": 1, "is_rehearsal": False, "started": "", "planned": ["a"], "sections": []}
    for wrong in ({"schema": 2}, {"run": 3}, {"more": 1}, {"planned": [1]}, {"sections": [{"name": "a"}]}):
        file.write_bytes(msgspec.json.encode(whole | wrong))
        with pytest.raises(msgspec.ValidationError):
            report.read_report(file)
    file.write_bytes(msgspec.json.encode(whole))
    assert report.exit_code(report.read_report(file)) == 1, "a planned section is missing"


def test_exit_codes() -> None:
    def code(*states: str) -> int:
        sections = [report.Section(s, s, 1.0, 1.0, "", [], [], {}) for s in states]
        return int(report.exit_code(report.Report(1, 1, False, "", list(states), sections)))

    assert code("passed", "passed") == 0
    assert code("passed", "unavailable") == 3
    assert [code("unavailable", other) for other in ("failed", "error", "timeout")] == [1, 1, 1]
    assert report.judge([]) == ("failed", "it checked nothing")


class Writing:
    """Kernels that write one byte somewhere behind the start of x."""

    device = CPU

    def __init__(self, at: int) -> None:
        self.at = at

    def workspace_bytes(self, operator: str, params: Any) -> int:
        return 64

    def launch(self, operator: str, params: Any, workspace: int) -> None:
        ctypes.memset(params["x"] + self.at, 5, 1)


@pytest.mark.parametrize(("at", "is_found"), [(-1, True), (0, True), (100, True), (100 + 1000, True), (-1000, True)])
def test_stray_writes_are_found(at: int, is_found: bool) -> None:
    inputs = {"x": np.zeros(100, np.uint8)}
    with pytest.raises(kernels.KernelError, match="was written"):
        kernels.guarded_call(Writing(at), "attention", inputs, {}, lambda places: places, poison=1)


def test_an_output_may_be_written() -> None:
    inputs, outputs = {"x": np.zeros(100, np.uint8)}, {"y": ((100,), np.uint8)}
    found, _ = kernels.guarded_call(
        Writing(3), "attention", inputs, outputs, lambda places: places, poison=1, aliases={"y": "x"}
    )
    assert found["y"].tolist() == [0, 0, 0, 5, *[0] * 96]


def test_int4_weights_are_read_as_they_are_packed() -> None:
    q = np.random.default_rng(0).integers(0, 16, (6, 64)).astype(np.uint8)
    np.testing.assert_array_equal(layer.unpack_int4(torch.from_numpy(pack_int4(q))).numpy(), q)


@pytest.mark.parametrize("T", [1, 7, 300])
@pytest.mark.parametrize("rows", [16, 64])
def test_blocks_have_every_slot_once(T: int, rows: int) -> None:
    weights = script("sass_tools.roofline").WEIGHTS[0]
    made = layer.RandomLayer(layer.TINY[0], weights, CPU)
    tokens = made.tokens(T, seed=1)
    slots, experts, _ = peers.blocks_of(made, tokens, rows)
    blocks, used = slots.view(-1, rows), T * made.layer.top_k
    assert sorted(slots[slots < used].tolist()) == list(range(used))
    of_slot = made.routing(tokens)[0].reshape(-1)
    for block, expert in zip(blocks, experts.tolist(), strict=True):
        own = block[block < used].long()
        assert (of_slot[own] == expert).all()
        assert (len(own) > 0) == (expert >= 0)


def test_counters_of_ncu() -> None:
    read = script("gpu_acceptance_tools.profile").read_metrics
    text = "\n".join(
        (
            "==PROF== Connected",
            '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"',
            '"0","void fastmmoe::gate_up_few<A, 8>(P)","Speed","Duration","us","1,234.50"',
            '"0","void fastmmoe::gate_up_few<A, 8>(P)","Speed","Something else","us","7"',
            '"1","void other(P)","Speed","Duration","us","9"',
        )
    )
    assert read(text) == {"gate_up_few": {"Duration": (1234.5, "us")}}
    assert read("no table") == {}


@pytest.mark.parametrize(
    ("code", "said", "is_good"),
    [
        (0, "done\n========= ERROR SUMMARY: 0 errors", True),
        (0, "done\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True),
        (0, "done\n========= Invalid __global__ write\n========= ERROR SUMMARY: 1 error", False),
        (0, "done\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", False),
        (0, "done", False),
        (0, "========= ERROR SUMMARY: 0 errors", False),
        (1, "done\n========= ERROR SUMMARY: 0 errors", False),
    ],
)
def test_what_a_sanitizer_says(code: int, said: str, is_good: bool) -> None:
    judge = script("gpu_acceptance_tools.sanitizer").judge
    assert judge(subprocess.CompletedProcess([], code, said, ""))[0] == is_good


def test_a_library_keeps_the_code_of_one_gpu(tmp_path: Path) -> None:
    library = pack.REPOSITORY / pack.LIBRARY
    if not library.is_file():
        pytest.skip(f"{library} is not there: run make plugins")
    kept = fat.keep_architecture(library, 87)
    assert len(kept) == library.stat().st_size
    trimmed = tmp_path / library.name
    trimmed.write_bytes(kept)
    assert ctypes.CDLL(str(trimmed)).RegisterCustomOps
    with pytest.raises(fat.NoFatBinary, match="has no machine code for sm_80"):
        fat.keep_architecture(trimmed, 80)
    with pytest.raises(fat.NoFatBinary, match="has no section"):
        fat.keep_architecture(Path(sys.executable), 87)


def test_the_folder_is_small_and_all_that_a_section_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.make(1, tmp_path, None) == 0
    assert "MiB of at most 64" in capsys.readouterr().out
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 8 << 20
    assert not (tmp_path / "tests" / "golden").exists()
    names = ", ".join(f"gpu_acceptance_tools.{section.name}" for section in plan.SECTIONS)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = ['scripts', '.']; import {names}, gpu_acceptance"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
