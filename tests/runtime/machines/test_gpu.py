# SPDX-License-Identifier: Apache-2.0
"""The driver and the bindings are asked in the way they expect: a small library and the double take their places."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastmmoe.runtime.machines import gpu
from fastmmoe.runtime.machines.gpu import Gpu, find_gpu
from tests.support.double import Double

DRIVER = """
#include <cstring>
extern "C" {
int cuInit(unsigned flags) { return flags == 0 ? INIT : 1; }
int cuDeviceGet(int* device, int ordinal) { *device = 7; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char* name, int size, int device) {
  if (device != 7 || size < 5) return 101;
  std::strcpy(name, "Orin");
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 7) return 101;
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return 0;
}
int cuDeviceGetPCIBusId(char* name, int size, int device) {
  if (device != 7 || size < 13) return 101;
  std::strcpy(name, "0000:01:00.0");
  return 0;
}
int cuDriverGetVersion(int* version) { *version = 12060; return INIT; }
}
"""
ASK = "from fastmmoe.runtime.machines.gpu import driver_cuda, find_gpu, pci_bus_id; "
ASK += "print(find_gpu(), driver_cuda(), pci_bus_id())"


def ask(folder: Path) -> str:
    """What a fresh process says that looks for the driver in the folder first."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    result = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("init", "answer"), [(0, "Gpu(name='Orin', sm=87) (12, 6) 0000:01:00.0"), (100, "None None None")]
)
def test_answer_of_the_driver(init: int, answer: str, tmp_path: Path) -> None:
    source = tmp_path / "driver.cpp"
    source.write_text(DRIVER)
    command = ["g++", "-shared", "-fPIC", f"-DINIT={init}", str(source), "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(command, check=True)
    assert ask(tmp_path) == answer


def test_damaged_driver(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    assert ask(tmp_path) == "None None None"


@pytest.mark.parametrize(("described", "found"), [("sm=87,name=Orin", Gpu("Orin", 87)), ("none", None), ("old", None)])
def test_answer_of_the_bindings(
    described: str, found: Gpu | None, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What engines are built for is what they will be run on."""
    double.modules(gpu=described)
    monkeypatch.setattr(gpu, "DRIVER", "libno_such_driver.so")
    assert find_gpu() == found


def test_bindings_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BINDINGS", "no_such_bindings")
    monkeypatch.setattr(gpu, "DRIVER", "libno_such_driver.so")
    assert find_gpu() is None
