# SPDX-License-Identifier: Apache-2.0
"""Whole made machines: every finding is one line, and what is not well has a line that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.doctor import software
from fastmmoe.runtime.doctor.examination import examine, worst
from fastmmoe.runtime.doctor.host import Finding
from fastmmoe.runtime.machines.gpu import Gpu
from tests.support.machine_trees import (
    CONTAINER,
    LAPTOP,
    NVPMODEL_15W,
    ORIN_JETPACK_6,
    ORIN_JETPACK_7,
    Files,
    machine,
)
from tests.support.manifests import write_toy_bundle

MACHINES = {
    "orin, JetPack 6.2": ORIN_JETPACK_6,
    "orin, JetPack 7.2": ORIN_JETPACK_7,
    "laptop": LAPTOP,
    "container": CONTAINER,
}
GPUS = {"orin, JetPack 6.2": Gpu("Orin", 87), "orin, JetPack 7.2": Gpu("Orin", 87), "laptop": Gpu("RTX", 89)}


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "find_gpu", lambda: GPUS.get(name))
    monkeypatch.setattr(software, "build_tiny_engine", lambda _: None)
    made = machine(tmp_path / "root", MACHINES[name], {"nvpmodel": NVPMODEL_15W})
    found = list(examine(made, write_toy_bundle(tmp_path / "toy")))
    names = [finding.name for finding in found]
    assert len(set(names)) == len(names) and {"fastmmoe", "gpu", "onnxruntime", "memory", "bundle"} <= set(names)
    assert ("jetpack" in names) == ("power mode" in names) == name.startswith("orin")
    for finding in found:
        assert finding.found and "\n" not in finding.found + finding.mend
        assert bool(finding.mend) == (finding.severity != "ok"), finding
    assert worst(found) == ("problem" if name == "container" else "warning")


@pytest.mark.parametrize("files", MACHINES.values(), ids=MACHINES)
def test_files_that_are_folders_or_rubbish(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them in turn."""
    monkeypatch.setattr(software, "find_gpu", lambda: None)
    for number, name in enumerate(files):
        root = tmp_path / str(number)
        made = machine(root, files)
        (root / name).unlink()
        (root / name).mkdir()
        assert all(finding.found for finding in examine(made))
        (root / name).rmdir()
        (root / name).write_bytes(b"\x00\xff\xfe rubbish \n\n\x80")
        assert all("\n" not in finding.found for finding in examine(made))


def test_the_worst_counts() -> None:
    ok, warning, problem = (Finding("x", severity, "y") for severity in ("ok", "warning", "problem"))
    assert worst([]) == worst([ok]) == "ok"
    assert worst([ok, warning]) == "warning"
    assert worst([problem, ok, warning]) == "problem"
