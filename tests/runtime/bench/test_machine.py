# SPDX-License-Identifier: Apache-2.0
"""What is said of machines: made ones, and this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fastmmoe import __version__
from fastmmoe.runtime.bench import machine as module
from fastmmoe.runtime.bench.machine import describe_bundle, describe_machine, find_commit
from fastmmoe.runtime.doctor.host import Host
from fastmmoe.runtime.machines.gpu import Gpu
from fastmmoe.runtime.machines.threads import usable_cores
from tests.support.machine_trees import LAPTOP, NVPMODEL_15W, ORIN_JETPACK_6, machine
from tests.support.manifests import toy_manifest

SMI = "450.00 W, 210 MHz, 2520 MHz, 580.65.06\n450.00 W, 1 MHz, 2 MHz, 3\n"


def test_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("Orin", 87))
    found = describe_machine(machine(tmp_path, ORIN_JETPACK_6, {"nvpmodel": NVPMODEL_15W}), "tensorrt", 0)
    assert found["device"] == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert found["power_mode"] == "15W: slower than the board can be"
    assert found["clocks"].startswith("306 to 918 MHz, now 306: they follow the load, times will vary; governor schedu")
    assert (found["gpu"], found["provider"], found["threads"]) == ("Orin", "tensorrt", None)
    assert found["temperature"] == "gpu-thermal at 52 degrees, limit 99"


def test_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("NVIDIA GeForce RTX 4090", 89))
    found = describe_machine(machine(tmp_path, LAPTOP, {"nvidia-smi": SMI}), "cuda", 0)
    assert (found["device"], found["processor"]) == ("NVIDIA GeForce RTX 4090", "made")
    assert found["power_mode"] == "limit 450.00 W"
    assert found["clocks"] == "gpu at 210 MHz of 2520 MHz; governor powersave: times will vary"
    assert found["versions"]["driver"] == "580.65.06"


def test_a_card_of_which_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("A card", 89))
    found = describe_machine(machine(tmp_path, {}, {"nvidia-smi": "?"}), "cuda", 0)
    assert (found["device"], found["power_mode"], found["clocks"]) == ("A card", None, None)
    assert "driver" not in found["versions"]


def test_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card of its machine is not asked."""
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("A card", 89))
    files = {"proc/cpuinfo": "processor : 0\nmodel name\t: A  fast one\ncpu MHz\t\t: 2900.5\n"}
    found = describe_machine(machine(tmp_path, files, {"nvidia-smi": SMI}), "cpu", 3)
    assert (found["device"], found["gpu"], found["power_mode"]) == ("A fast one", None, None)
    assert (found["clocks"], found["threads"]) == ("cpu at 2900 MHz", 3)


def test_this_machine() -> None:
    found = describe_machine(Host(), "cpu", 0)
    assert found["threads"] == found["cores"] == usable_cores() and found["device"]
    assert found["versions"]["fastmmoe"] == __version__ and "numpy" in found["versions"]


def test_a_commit(tmp_path: Path) -> None:
    assert find_commit(Host(), tmp_path) is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run((*git, "init", "-q"), check=True)
    assert find_commit(Host(), tmp_path) is None
    (tmp_path / "file").write_text("a")
    subprocess.run((*git, "add", "file"), check=True)
    subprocess.run((*git, "commit", "-qm", "First"), check=True)
    subprocess.run((*git, "tag", "-a", "v1", "-m", "v1"), check=True)
    commit = subprocess.run((*git, "rev-parse", "HEAD"), check=True, capture_output=True, text=True).stdout
    assert find_commit(Host(), tmp_path) == commit[:12]
    (tmp_path / "file").write_text("b")
    assert find_commit(Host(), tmp_path) == f"{commit[:12]}-dirty"


def test_a_bundle(tmp_path: Path) -> None:
    manifest = toy_manifest("deepseek_vl2")
    found = describe_bundle(tmp_path, manifest)
    assert (found["model"], found["target"], found["engines"]) == (manifest.model, manifest.target, None)
    assert len(found["sha256"]) == 64
