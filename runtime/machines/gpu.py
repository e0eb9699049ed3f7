# SPDX-License-Identifier: Apache-2.0
"""The GPU of this machine, asked of CUDA where its bindings are installed, else of NVIDIA's driver itself."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

DRIVER = "libcuda.so.1"
BINDINGS = "cuda.bindings.runtime"
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
NAME_BYTES, BUS_ID_BYTES = 256, 32


@dataclass(frozen=True)
class Gpu:
    """A GPU. sm: compute capability, 87 for 8.7."""

    name: str
    sm: int


def find_gpu() -> Gpu | None:
    """The first GPU, in the order of $CUDA_VISIBLE_DEVICES; None where there is no driver or no GPU."""
    return _ask_bindings() or _ask_driver()


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver is for; None where there is no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def pci_bus_id() -> str | None:
    """Where the first GPU is, "0000:01:00.0": other libraries of the driver count in another order."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(BUS_ID_BYTES)
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    failed = driver.cuDeviceGetPCIBusId(name, BUS_ID_BYTES, device)
    return None if failed else name.value.decode(errors="replace")


def of_properties(found: Any) -> Gpu:
    """A GPU from what `cudaGetDeviceProperties` says of it."""
    name = found.name.decode(errors="replace") if isinstance(found.name, bytes) else found.name
    return Gpu(name, 10 * found.major + found.minor)


def _ask_bindings() -> Gpu | None:
    """As engines are run: by the bindings of CUDA. None where they are missing or too new for the driver, too."""
    try:
        cudart = importlib.import_module(BINDINGS)
    except (ImportError, OSError):
        return None
    error, count = cudart.cudaGetDeviceCount()
    if int(error) != 0 or count == 0:
        return None
    error, found = cudart.cudaGetDeviceProperties(0)
    return of_properties(found) if int(error) == 0 else None


def _ask_driver() -> Gpu | None:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failures = (
        driver.cuDeviceGetName(name, NAME_BYTES, device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device),
    )
    if any(failures):
        return None
    return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value)
