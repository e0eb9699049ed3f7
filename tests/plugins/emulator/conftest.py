# SPDX-License-Identifier: Apache-2.0
"""Test kernels compiled against the CUDA emulator and called through C functions."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
KERNELS = Path(__file__).with_name("kernels")
SETTINGS = ("seed", "threads", "architecture")
FROM_ENVIRONMENT = -1


class KernelFault(Exception):
    """What a C function of a test kernel reported."""


def build_emulated(output: Path, *sources: Path) -> Path:
    """Compile kernels against the emulator into the shared library `output`, or raise with the compiler's words."""
    command = ["bash", str(REPOSITORY / "scripts" / "build_emulator.sh"), str(output), *map(str, sources)]
    # The compiler needs no sanitizer that is loaded into this process.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["PYTHON"] = sys.executable
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return output


def _c_argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.ctypes.data_as(ctypes.c_void_p)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int(value)


class EmulatedLibrary:
    """The C functions of one file of test kernels."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def set(self, **settings: int) -> None:
        """Change seed, threads or architecture; FROM_ENVIRONMENT gives the choice back."""
        for name, value in settings.items():
            self._library[f"fastmmoe_emulator_set_{name}"](ctypes.c_int64(value))

    def __call__(self, function: str, *arguments: Any) -> None:
        """Call with C-contiguous arrays, ints and floats; raise KernelFault with the message it returns."""
        entry = self._library[function]
        entry.restype = ctypes.c_char_p
        message = entry(*map(_c_argument, arguments))
        if message is not None:
            raise KernelFault(message.decode())


@pytest.fixture(scope="session")
def _libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EmulatedLibrary]:
    directory = tmp_path_factory.mktemp("emulated")
    built: dict[str, EmulatedLibrary] = {}

    def get(name: str) -> EmulatedLibrary:
        if name not in built:
            built[name] = EmulatedLibrary(build_emulated(directory / f"{name}.so", KERNELS / f"{name}.cu"))
        return built[name]

    return get


@pytest.fixture
def emulated(
    _libraries: Callable[[str], EmulatedLibrary], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], EmulatedLibrary]]:
    """Function file name -> EmulatedLibrary with default settings, for this test."""
    for name in ("SEED", "THREADS", "ARCH"):
        monkeypatch.delenv(f"FASTMMOE_EMULATOR_{name}", raising=False)
    used: list[EmulatedLibrary] = []

    def get(name: str) -> EmulatedLibrary:
        used.append(_libraries(name))
        return used[-1]

    yield get
    for library in used:
        library.set(**dict.fromkeys(SETTINGS, FROM_ENVIRONMENT))


@pytest.fixture
def kernel_fault() -> type[KernelFault]:
    """Class KernelFault, what an EmulatedLibrary raises."""
    return KernelFault
