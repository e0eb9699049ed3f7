# SPDX-License-Identifier: Apache-2.0
"""JetPack, power mode and clocks of made Jetsons."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.doctor.host import Finding
from fastmmoe.runtime.doctor.jetson import (
    FIX_CLOCKS,
    FLASH,
    MOST_POWER,
    REINSTALL,
    UPGRADE,
    jetpack_of,
    package_version,
    probe_jetson,
)
from tests.support.machine_trees import (
    LAPTOP,
    NVPMODEL_15W,
    NVPMODEL_MAXN,
    ORIN_JETPACK_6,
    ORIN_JETPACK_7,
    Files,
    machine,
    package,
)


def findings(root: Path, files: Files, power: str | None = NVPMODEL_MAXN) -> dict[str, Finding]:
    made = machine(root, files, {} if power is None else {"nvpmodel": power})
    return {finding.name: finding for finding in probe_jetson(made)}


def test_elsewhere_nothing_is_found(tmp_path: Path) -> None:
    assert findings(tmp_path, LAPTOP) == {}


def test_jetpack_6(tmp_path: Path) -> None:
    found = findings(tmp_path, ORIN_JETPACK_6, NVPMODEL_15W)
    assert found["jetpack"].severity == "ok"
    assert found["jetpack"].found == (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit, L4T 36.4.3, JetPack 6.2 (6.2+b77): targets "
        "jetson-...@jp6.2"
    )
    assert found["power mode"] == Finding("power mode", "warning", "15W: slower than the board can be", MOST_POWER)
    assert found["gpu clocks"].found == "306 to 918 MHz, now 306: they follow the load, times will vary"
    assert found["gpu clocks"].mend == FIX_CLOCKS


def test_jetpack_7(tmp_path: Path) -> None:
    gpu = "sys/class/devfreq/17000000.gpu"
    fixed = {f"{gpu}/min_freq": "1300500000", f"{gpu}/max_freq": "1300500000"}
    found = findings(tmp_path, ORIN_JETPACK_7 | fixed)
    assert found["jetpack"].found == (
        "NVIDIA Jetson AGX Orin Developer Kit, L4T 39.2.0, JetPack 7.2 (7.2+b1): targets jetson-..."
    )
    assert found["power mode"] == Finding("power mode", "ok", "MAXN_SUPER")
    assert found["gpu clocks"] == Finding("gpu clocks", "ok", "fixed at 1300 MHz")


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ((35, 6, 0), ""),
        ((36, 4, 0), ""),
        ((36, 4, 3), "6.2"),
        ((36, 5, 0), "6.2"),
        ((38, 2, 0), ""),
        ((39, 2, 0), "7.2"),
    ],
)
def test_releases(release: tuple[int, int, int], jetpack: str) -> None:
    assert jetpack_of(release) == jetpack


@pytest.mark.parametrize(
    ("text", "severity", "words", "mend"),
    [
        ("# R35 (release), REVISION: 6.0, GCID: 1", "problem", "L4T 35.6.0: bundles are made for JetPack 6.2", FLASH),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "problem", "L4T 36.3.0: bundles are made for", UPGRADE),
        ("rubbish", "warning", "says 'rubbish', which is not understood", REINSTALL),
        ("", "warning", "says '', which is not understood", REINSTALL),
    ],
)
def test_other_releases(text: str, severity: str, words: str, mend: str, tmp_path: Path) -> None:
    found = findings(tmp_path, ORIN_JETPACK_6 | {"etc/nv_tegra_release": text})["jetpack"]
    assert (found.severity, found.mend) == (severity, mend) and words in found.found


def test_a_jetson_without_its_files(tmp_path: Path) -> None:
    found = findings(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"}, None)
    assert found["jetpack"].found == "NVIDIA Jetson Orin Nano; /etc/nv_tegra_release is missing"
    assert found["power mode"] == Finding("power mode", "warning", "nvpmodel does not say it", "sudo nvpmodel -q")
    bare = ORIN_JETPACK_6 | {"var/lib/dpkg/status": package("nvidia-l4t-core", "36.4.3")}
    assert findings(tmp_path / "bare", bare)["jetpack"].mend == UPGRADE


@pytest.mark.parametrize(
    ("power", "status", "severity"),
    [
        ("gibberish", "", "warning"),
        (None, "pmode:0000 fmode:cool", "ok"),
        (None, "pmode:0002 fmode:cool", "warning"),
        (None, "broken", "warning"),
    ],
)
def test_power_modes(power: str | None, status: str, severity: str, tmp_path: Path) -> None:
    files = ORIN_JETPACK_6 | {"var/lib/nvpmodel/status": status}
    found = findings(tmp_path, files, power)["power mode"]
    assert found.severity == severity and bool(found.mend) == (severity != "ok")


def test_clocks_that_are_not_said(tmp_path: Path) -> None:
    found = findings(tmp_path, ORIN_JETPACK_6 | {"sys/class/devfreq/17000000.gpu/max_freq": "fast"})["gpu clocks"]
    assert (found.severity, found.mend) == ("warning", "sudo jetson_clocks --show")


def test_packages(tmp_path: Path) -> None:
    removed = "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
    made = machine(tmp_path, {"var/lib/dpkg/status": removed + package("there", "2:1.0-3")})
    assert (package_version(made, "there"), package_version(made, "gone"), package_version(made, "no")) == (
        "2:1.0-3",
        None,
        None,
    )
