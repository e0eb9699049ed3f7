# SPDX-License-Identifier: Apache-2.0
"""Energy: rails of made Jetsons, a small library in the place of NVML, and sums of a made power."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmmoe.runtime.machines import power
from fastmmoe.runtime.machines.power import EnergyMeter, PowerMeter, find_meter, find_rails, read_rails
from tests.support.machine_trees import machine

HWMON = "sys/class/hwmon"


def chip(number: int, name: str, *rails: tuple[str, int, int]) -> dict[str, str]:
    """A monitor with rails of (label, millivolts, milliamperes), and the channel that it has for their sum."""
    files = {f"{HWMON}/hwmon{number}/name": f"{name}\n"}
    for channel, (label, millivolts, milliamperes) in enumerate(rails, start=1):
        files |= {
            f"{HWMON}/hwmon{number}/in{channel}_label": f"{label}\n",
            f"{HWMON}/hwmon{number}/in{channel}_input": f"{millivolts}\n",
            f"{HWMON}/hwmon{number}/curr{channel}_input": f"{milliamperes}\n",
        }
    files[f"{HWMON}/hwmon{number}/in7_label"] = "sum of shunt voltages\n"
    files[f"{HWMON}/hwmon{number}/in7_input"] = "5\n"
    files[f"{HWMON}/hwmon{number}/curr7_input"] = "5\n"
    return files


ORIN_NX = chip(3, "ina3221", ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300))
AGX_ORIN = chip(1, "ina3221", ("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 100), ("VIN_SYS_5V0", 5000, 1000))
AGX_ORIN |= chip(2, "ina3221", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0))


@pytest.mark.parametrize(
    ("files", "names", "watts"),
    [
        (ORIN_NX, ["VDD_IN"], 6.0),
        (AGX_ORIN, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"], 3.8 + 1.9 + 5.0 + 0.5),
        (chip(0, "coretemp", ("VDD_IN", 5000, 1000)), [], 0.0),
        (chip(0, "ina3221"), [], 0.0),
        ({}, [], 0.0),
    ],
)
def test_rails(files: dict[str, str], names: list[str], watts: float, tmp_path: Path) -> None:
    machine(tmp_path, files)
    rails = find_rails(tmp_path)
    assert [name for name, _, _ in rails] == names
    assert read_rails(rails) == pytest.approx(watts)


@pytest.mark.parametrize("odd", ["", "?\n", None])
def test_rails_that_are_not_read(odd: str | None, tmp_path: Path) -> None:
    machine(tmp_path, ORIN_NX)
    file = tmp_path / HWMON / "hwmon3" / "curr1_input"
    rails = find_rails(tmp_path)
    file.unlink() if odd is None else file.write_text(odd)
    assert read_rails(rails) is None
    assert [name for name, _, _ in find_rails(tmp_path)] == ["VDD_CPU_GPU_CV", "VDD_SOC"]


def test_a_jetson_is_metered_whatever_computes(tmp_path: Path) -> None:
    for provider in ("cpu", "tensorrt"):
        meter = find_meter(provider, machine(tmp_path, ORIN_NX).root)
        assert meter is not None and meter.source == "INA3221 (VDD_IN)"
        times = [time.perf_counter()]
        before = meter.joules()
        times.append(time.perf_counter())
        time.sleep(0.05)
        times.append(time.perf_counter())
        found = meter.joules() - before
        times.append(time.perf_counter())
        assert 6.0 * (times[2] - times[1]) <= found + 1e-6 <= 6.0 * (times[3] - times[0]) + 2e-6
        meter.close()


def test_no_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NVML", "libno_such_nvml.so")
    assert find_meter("cpu", tmp_path) is None and find_meter("cuda", tmp_path) is None


def test_trapezoids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power that rises by 2 W a second: 10 s of it, 100 J; a reading that fails counts as the one before."""
    monkeypatch.setattr(power, "INTERVAL_SECONDS", 1000.0)
    now, fails = [0.0], [False]
    meter = PowerMeter("made", lambda: None if fails[0] else 2 * now[0], lambda: now[0])
    found = []
    for second in range(1, 11):
        now[0] = float(second)
        found.append(meter.joules())
    assert found[-1] == pytest.approx(100.0)
    now[0], fails[0] = 11.0, True
    assert meter.joules() == pytest.approx(120.0)
    meter.close()
    assert not meter._thread.is_alive()


def test_a_counter_that_fails_stands_still() -> None:
    values = iter([1.0, 3.0, None])
    meter = EnergyMeter("made", lambda: next(values))
    assert [meter.joules(), meter.joules()] == [3.0, 3.0]
    meter.close()


LIBRARY = """
#include <cstring>
static int device = 0;
extern "C" {
int nvmlInit_v2() { return INIT; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** found) { *found = &device; return index == 0 ? 0 : 2; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** found) {
  *found = &device;
  return std::strcmp(bus, "0000:01:00.0") == 0 ? 0 : 2;
}
int nvmlDeviceGetTotalEnergyConsumption(void* of, unsigned long long* value) {
  *value = 2000 + 500 * device++;
  return of == &device ? COUNTER : 2;
}
int nvmlDeviceGetPowerUsage(void* of, unsigned* value) { *value = 70000; return of == &device ? POWER : 2; }
}
"""
ASK = """
from fastmmoe.runtime.machines.power import find_meter
meter = find_meter("cuda")
print(None if meter is None else (meter.source, round(meter.joules() - meter.joules(), 1)))
if meter is not None: meter.close()
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("init", "counter", "power_usage", "answer"),
    [
        (0, 0, 0, '("NVML, the card\'s counter", -0.5)'),
        (0, 3, 0, '("NVML, the card\'s power", -0.0)'),
        (0, 3, 3, "None"),
        (9, 0, 0, "None"),
    ],
)
def test_answers_of_nvml(init: int, counter: int, power_usage: int, answer: str, tmp_path: Path) -> None:
    (tmp_path / "nvml.cpp").write_text(LIBRARY)
    values = [f"-DINIT={init}", f"-DCOUNTER={counter}", f"-DPOWER={power_usage}"]
    command = ["g++", "-shared", "-fPIC", *values, str(tmp_path / "nvml.cpp"), "-o", str(tmp_path / power.NVML)]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == answer
