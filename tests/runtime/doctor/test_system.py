# SPDX-License-Identifier: Apache-2.0
"""Memory, swap, cores, clocks and temperatures of made machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.doctor.host import Finding
from fastmmoe.runtime.doctor.system import ADD_SWAP, SET_GOVERNOR, memory_limit, probe_system
from fastmmoe.runtime.machines import threads
from tests.support.machine_trees import (
    CONTAINER,
    DISK,
    LAPTOP,
    ORIN_JETPACK_6,
    SWAPS,
    ZRAM,
    Files,
    machine,
    memory,
    processors,
)

ZONE = "sys/class/thermal/thermal_zone0"


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(2)))


def findings(root: Path, files: Files) -> dict[str, Finding]:
    return {finding.name: finding for finding in probe_system(machine(root, files))}


def test_a_laptop(tmp_path: Path) -> None:
    found = findings(tmp_path, LAPTOP)
    assert found["memory"] == Finding("memory", "ok", "9.1 of 16.6 GB free, 4.0 GB of swap")
    assert found["swap"] == Finding("swap", "ok", "on disk")
    assert found["cores"] == Finding("cores", "ok", "2")
    assert found["cpu clocks"] == Finding("cpu clocks", "warning", "governor powersave: times will vary", SET_GOVERNOR)
    assert found["temperature"] == Finding("temperature", "ok", "x86_pkg_temp at 64 degrees, limit 85")


def test_a_jetson(tmp_path: Path) -> None:
    found = findings(tmp_path, ORIN_JETPACK_6)
    assert found["swap"].severity == "warning" and found["swap"].mend == ADD_SWAP
    assert "zram" in found["swap"].found
    assert found["temperature"] == Finding("temperature", "ok", "gpu-thermal at 52 degrees, limit 99")
    assert found["cpu clocks"] == Finding("cpu clocks", "ok", "governor schedutil")


def test_a_container(tmp_path: Path) -> None:
    found = findings(tmp_path, CONTAINER)
    assert found["memory"].found.endswith("; this container may use 4.0 GB")
    assert (found["memory"].severity, found["memory"].mend) == ("warning", "docker run --memory 64g ...")
    assert found["cores"] == Finding("cores", "warning", "this container may use 1 of 8", "docker run --cpus 8 ...")
    assert found["swap"].found.startswith("none: ") and found["swap"].mend == ADD_SWAP
    # Neither frequencies nor temperatures are seen there.
    assert not found.keys() & {"cpu clocks", "temperature"}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "7\n"}, 7),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "5:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9\n"}, 9),
        (
            {"proc/self/cgroup": "5:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_limits_of_memory(files: Files, limit: int | None, tmp_path: Path) -> None:
    assert memory_limit(machine(tmp_path, files)) == limit


@pytest.mark.parametrize(("swaps", "severity"), [(SWAPS, "warning"), (SWAPS + ZRAM, "warning"), (SWAPS + DISK, "ok")])
def test_swap(swaps: str, severity: str, tmp_path: Path) -> None:
    assert findings(tmp_path, {"proc/swaps": swaps})["swap"].severity == severity
    assert findings(tmp_path, {"proc/swaps": SWAPS + ZRAM + DISK})["swap"].found.endswith("(zram)")


def test_little_memory(tmp_path: Path) -> None:
    found = findings(tmp_path, {"proc/meminfo": memory(4.0, 0.5, 0.4)})["memory"]
    assert (found.severity, found.mend) == ("warning", "end other programs: ps aux --sort -rss | head")


def test_fewer_cores_than_there_are(tmp_path: Path) -> None:
    found = findings(tmp_path, {"proc/cpuinfo": processors(6)})["cores"]
    assert found == Finding("cores", "warning", "this process may use 2 of 6", "taskset -c 0-5 fastmmoe ...")


@pytest.mark.parametrize(("degrees", "severity"), [(60, "ok"), (91, "warning"), (95, "problem")])
def test_temperatures(degrees: int, severity: str, tmp_path: Path) -> None:
    files = {
        f"{ZONE}/temp": f"{1000 * degrees}",
        f"{ZONE}/trip_point_0_type": "active",
        f"{ZONE}/trip_point_0_temp": "10000",
        f"{ZONE}/trip_point_1_type": "passive",
        f"{ZONE}/trip_point_1_temp": "95000",
        "sys/class/thermal/thermal_zone1/temp": "20000",
    }
    found = findings(tmp_path, files)["temperature"]
    assert found.severity == severity and found.found.startswith(f"thermal_zone0 at {degrees} degrees, limit 95")


@pytest.mark.parametrize(
    "text",
    ["", "\xff", "-1", "x y z\n" * 1000, "0\n0\n0", "9" * 30],
    ids=["empty", "odd", "-1", "long", "lines", "great"],
)
def test_odd_files_are_findings_and_no_tracebacks(text: str, tmp_path: Path) -> None:
    for files in (LAPTOP, CONTAINER, ORIN_JETPACK_6):
        for name in files:
            root = tmp_path / name.replace("/", "_") / str(len(files))
            found = findings(root, files | {name: text})
            assert all(finding.found and "\n" not in finding.found + finding.mend for finding in found.values())
            assert all(finding.mend for finding in found.values() if finding.severity != "ok")


def test_a_machine_without_files(tmp_path: Path) -> None:
    found = findings(tmp_path, {})
    assert found["memory"].severity == "warning" and found["memory"].mend
    assert found["cores"].severity == "ok"
